"""Counts what a model and a conversation take of one memory: weights, pages of experts, KV cache, workspace.

Exact for weights and the cache, from headers or from sizes and formats alone; workspace by measured rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.parts import ModelTensor
from ernie_local.config import ModelConfig, TextConfig
from ernie_local.defaults import roomier_context
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.plan import PagingPlan
from ernie_local.media.image_size import ImageReport
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.memory_use import (
    DEFAULT_CHUNK_TOKENS,
    KV_ITEM_BYTES,
    AttentionWay,
    KVSize,
    attention_bytes,
    cpu_attention_way,
    encoding_bytes,
    image_prompt_bytes,
    mixed_chunk_bytes,
    prompt_room,
)
from ernie_local.planner.weight_bytes import WEIGHT_ITEM_BYTES, WeightBytes
from ernie_local.sizes import KIB

_TAGS = 2  # tokens around the placeholders of each image
_PIXEL_BYTES = 4  # Pillow keeps a fourth byte beside red, green and blue
# Products of plain bfloat16 experts: on a processor with instructions for them torch keeps a compiled program
# for each number of tokens that an expert got, up to this many.
_MOST_PROGRAMS, _PROGRAM_BYTES = 1024, 500 * KIB
# Without a limit, a conversation is expected to grow to this length before experts have to give way.
EXPECTED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A chat to plan for: it fills its context, images first. dtype: of computation.

    may_shrink_cache: whether a GPU may have the KV cache in another type than `kv_dtype`: in float16 where it
    does not multiply bfloat16, in int8 where more leaves experts too little.
    parallel: chats like this that are answered at once; their prompts are read one after the other.
    """

    context_size: int
    dtype: str
    kv_dtype: str
    images: tuple[ImageReport, ...] = ()
    may_shrink_cache: bool = False
    parallel: int = 1

    def kv_dtype_on_gpu(self, *, multiplies_bfloat16: bool) -> str:
        """Of the KV cache on a GPU that has room: another type of 16 bits where it has no products of one."""
        suits = multiplies_bfloat16 or self.kv_dtype != "bfloat16" or not self.may_shrink_cache
        return self.kv_dtype if suits else "float16"

    @property
    def image_tokens(self) -> int:
        """Tokens of all images with their tags."""
        return sum(image.tokens + _TAGS for image in self.images)

    @property
    def item_bytes(self) -> int:
        """Bytes of a number in weights that are not packed."""
        return WEIGHT_ITEM_BYTES[self.dtype]

    @property
    def patch_counts(self) -> list[int]:
        """Patches of each image."""
        return [image.patches for image in self.images]

    @property
    def opened_bytes(self) -> int:
        """Pixels of the images as they were opened, which the process has until they are cut into patches."""
        return sum(
            _PIXEL_BYTES * width * height for width, height in (one.original_size for one in self.images)
        )

    def kv_size(self, config: TextConfig) -> KVSize:
        """Size of the KV cache of one chat."""
        return KVSize.of(config, self.context_size, KV_ITEM_BYTES[self.kv_dtype])

    def check_images(self, most: int) -> None:
        """DoesNotFit where images alone fill the context; most: the model's limit in tokens."""
        if self.image_tokens < self.context_size:
            return
        enough = roomier_context(self.image_tokens, most)
        raise DoesNotFit(
            f"the images take {self.image_tokens} tokens, the context has {self.context_size}",
            "the question and the answer need room, too",
            f"{'fewer images' if enough is None else parameter('context_size', enough)}, or "
            f"{parameter('detail', 'auto')}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What a model and a conversation take of RAM, in bytes; of a GPU, see gpu_need.py.

    dense_bytes: all weights but routed experts. expert_bytes: routed experts; least_expert_bytes: the
    least to page them with, None where they cannot be paged. cache_bytes: the KV caches of `context_size`
    tokens of `parallel` conversations. chunk_tokens: of a prompt, computed at a time; None for as many as
    suit the memory.

    Paged experts give way to a prompt and to attention over `context_size` tokens; beside resident ones
    prompt_bytes are kept free, the largest prompt's.

    Of images that come first: encoding_bytes while they are encoded; image_bytes from then on until
    the prompt has been read, and mixed_token_bytes for each token of a chunk. image_tokens: in the cache.
    attention: how chunks attend.

    compiled_bytes: of programs that torch compiles for products, and keeps.

    image_weight_bytes: of dense_bytes, what may leave RAM while no image is encoded; 0 where that gains no
    frame. text_expert_bytes: of the frames that hold every expert of decode.
    """

    config: TextConfig
    dense_bytes: int
    expert_bytes: int
    least_expert_bytes: int | None
    cache_bytes: int = 0
    context_size: int = 0
    prompt_bytes: int = 0
    chunk_tokens: int | None = None
    encoding_bytes: int = 0
    image_bytes: int = 0
    mixed_token_bytes: int = 0
    image_tokens: int = 0
    image_weight_bytes: int = 0
    text_expert_bytes: int = 0
    attention: AttentionWay = "masks"
    compiled_bytes: int = 0
    parallel: int = 1

    @classmethod
    def of_weights(cls, config: TextConfig, weights: WeightBytes, plan: PagingPlan | None) -> MemoryNeed:
        """What these weights take, before any conversation. No plan: experts cannot be paged."""
        need = cls(
            config=config, dense_bytes=weights.dense, expert_bytes=weights.experts, least_expert_bytes=None
        )
        if plan is None:
            return need
        return dataclasses.replace(
            need,
            least_expert_bytes=plan.least_bytes,
            image_weight_bytes=weights.for_images if weights.for_images >= plan.frame_bytes else 0,
            text_expert_bytes=plan.bytes_of("text"),
        )

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return self.dense_bytes + self.expert_bytes

    @property
    def resident_bytes(self) -> int:
        """All experts and what stays free beside them."""
        # A model that cannot be paged has no choice, so nothing is kept free for a prompt.
        beside = 0 if self.least_expert_bytes is None else self.prompt_bytes
        return self.expert_bytes + self.cache_bytes + beside

    def spare_bytes(self, left: int) -> int:
        """What all experts, the conversation and its largest prompt leave of `left` bytes."""
        return max(0, left - self.expert_bytes - self.cache_bytes - self.prompt_bytes)

    def least_bytes(self, chunk_tokens: int) -> int:
        """The least that experts and the conversation have together besides `dense_bytes`.

        Below 0 where the weights for images leave more memory than is needed.
        """
        swapped = self.image_weight_bytes
        return min(self.paged_bytes(chunk_tokens, swapped) - swapped, self.resident_bytes)

    def paged_bytes(self, chunk_tokens: int, swapped_bytes: int) -> int:
        """The least that experts and the conversation have together where experts are paged.

        swapped_bytes: of weights for images, which are there only while these are encoded.
        """
        beside = max(self.vision_bytes(chunk_tokens, swapped_bytes), self.prefill_bytes(chunk_tokens))
        least = self.expert_bytes if self.least_expert_bytes is None else self.least_expert_bytes
        return least + beside

    def vision_bytes(self, chunk_tokens: int, swapped_bytes: int) -> int:
        """What images take of RAM beside paged experts while they are encoded.

        The cache of their conversation is empty then, those of all others are full.
        """
        weights = swapped_bytes if self.image_tokens else 0
        one = self.cache_bytes // self.parallel + self.attention_bytes(chunk_tokens)
        others = (self.parallel - 1) * one
        return weights + self.encoding_bytes + self._held_bytes(chunk_tokens) + others

    def prefill_bytes(self, chunk_tokens: int) -> int:
        """What the conversation takes of RAM beside paged experts while its last chunk is read."""
        return self.decode_bytes(chunk_tokens) + self._held_bytes(chunk_tokens)

    def decode_bytes(self, chunk_tokens: int) -> int:
        """What it takes once it has been read: what a prompt needed stays with its cache."""
        return self.cache_bytes + self.parallel * self.attention_bytes(chunk_tokens)

    def attention_bytes(self, chunk_tokens: int) -> int:
        """What the attention of the last chunk takes of RAM besides the cache."""
        chunk = min(chunk_tokens, self.context_size)
        return attention_bytes(self.config, chunk, self.context_size, self.attention)

    def _held_bytes(self, chunk_tokens: int) -> int:
        return self.image_bytes + self.mixed_token_bytes * min(chunk_tokens, self.context_size)

    def expecting(self, num_tokens: int) -> MemoryNeed:
        """The need of a conversation of at most `num_tokens` tokens, or of its images if they have more."""
        num_tokens = max(num_tokens, self.image_tokens)
        if num_tokens >= self.context_size:
            return self
        cache_bytes = self.cache_bytes * num_tokens // self.context_size
        return dataclasses.replace(self, cache_bytes=cache_bytes, context_size=num_tokens)


def chat_need(
    need: MemoryNeed, config: ModelConfig, processor: ImageProcessorConfig, chat: ChatPlan, limit: int | None
) -> MemoryNeed:
    """What a chat takes of RAM besides the weights of `need`. limit: of the process, None without one."""
    images, item_bytes = chat.patch_counts, chat.item_bytes
    num_patches, num_tokens = sum(images), sum(image.tokens for image in chat.images)
    attention = cpu_attention_way(config, chat.dtype)
    at_once = chat.context_size if limit is not None else min(chat.context_size, EXPECTED_TOKENS)
    return dataclasses.replace(
        need,
        cache_bytes=chat.parallel * chat.kv_size(config.text).num_bytes,
        context_size=chat.context_size,
        prompt_bytes=_largest_prompt_bytes(config, processor, at_once, item_bytes, attention),
        encoding_bytes=encoding_bytes(config.tower, images, item_bytes),
        image_bytes=image_prompt_bytes(config, num_patches, num_tokens, 0, item_bytes),
        mixed_token_bytes=mixed_chunk_bytes(config.text, 1, item_bytes) if images else 0,
        image_tokens=chat.image_tokens,
        attention=attention,
        compiled_bytes=compiled_bytes(config, chat, DEFAULT_CHUNK_TOKENS),
        parallel=chat.parallel,
    )


def compiled_bytes(config: ModelConfig, chat: ChatPlan, chunk_tokens: int) -> int:
    """About what torch keeps of programs for products of plain bfloat16 experts.

    Two products for each expert that a chunk visits; text alone visits only the banks that serve it.
    """
    if config.has_packed_experts or chat.dtype != "bfloat16":
        return 0
    text = config.text
    num_experts = sum(bank.num_experts for bank in text.banks if chat.images or "text" in bank.serves)
    num_chunks = -(-chat.context_size // chunk_tokens)
    return min(_MOST_PROGRAMS, 2 * num_chunks * sum(text.moe_layers) * num_experts) * _PROGRAM_BYTES


def _largest_prompt_bytes(
    config: ModelConfig,
    processor: ImageProcessorConfig,
    num_tokens: int,
    item_bytes: int,
    attention: AttentionWay,
) -> int:
    """Memory of a prompt while it is read, if images fill `num_tokens`, one of them of the largest size."""
    patches = num_tokens * processor.merge_size**2
    largest = min(patches, processor.max_pixels // processor.patch_size**2)
    return prompt_room(config, num_tokens, DEFAULT_CHUNK_TOKENS, [largest], patches, item_bytes, attention)


def expert_page_sizes(tensors: Iterable[ModelTensor], config: ModelConfig) -> dict[ExpertKey, int]:
    """Bytes of the page of every routed expert, in order; empty for a model without experts."""
    experts = {tensor.name: tensor for tensor in tensors if tensor.name.startswith("experts.")}
    packed = PackedTensors(config) if config.has_packed_experts else None
    sizes: dict[ExpertKey, int] = {}
    for layer_id, bank in config.text.layer_banks():
        keys = [ExpertKey(layer_id, bank.name, expert_id) for expert_id in range(bank.num_experts)]
        if packed is not None:
            located = packed.locate_experts(layer_id, bank.name)
            sizes |= {key: experts[name].shape[1] for key, (name, _) in zip(keys, located, strict=True)}
            continue
        for key in keys:
            stem = f"experts.{layer_id}.{bank.name}.{key.expert_id}"
            sizes[key] = sum(experts[f"{stem}.{projection}"].num_bytes for projection in PROJECTIONS)
    return sizes
