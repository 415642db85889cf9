"""Counts what a model and a chat take of a GPU: what stays there, and what is there for a phase alone.

Exact for weights, pages and the cache; workspace by the rules that the engine keeps it by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ernie_local.checkpoint.parts import ATTENTION_PART, EMBEDDING_PART, HEAD_PART, IMAGE_PARTS
from ernie_local.config import ModelConfig
from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.experts.plan import PagingPlan, lent_bytes, workspace_pieces
from ernie_local.model.host_parts import ALL_ON_GPU, HostParts
from ernie_local.model.memory_use import (
    CACHE_STEP_TOKENS,
    DEFAULT_CHUNK_TOKENS,
    SMALLEST_CHUNK_TOKENS,
    AttentionWay,
    KVSize,
    chunk_bytes_on_gpu,
    encoding_bytes,
    grown_tokens,
    host_attention_bytes,
    image_prompt_bytes,
)
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.weight_bytes import ProjectionBytes, WeightBytes
from ernie_local.sizes import aligned

# Of an image of 1280 tokens, four patches each: a page that is read at its usual size. One may come later.
_PATCHES = 5120


@dataclass(frozen=True, slots=True)
class GpuLayout:
    """What a placement may choose. swaps_image_weights: whether vision tower and resampler lie in RAM, and
    pass through the GPU while images are encoded. chunk_tokens: of a prompt, computed at a time. host: what
    the processor computes besides experts."""

    kv_dtype: str
    swaps_image_weights: bool
    chunk_tokens: int
    host: HostParts = ALL_ON_GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNeed:
    """What a model and its chat take of a GPU; all numbers are bytes.

    weights: with a slot for each expert. plan: of their pages, None where they cannot be paged.
    scratch_bytes: for unpacking weights. chunk_tokens: as asked for; None for as many as suit the memory.
    attention: of a chunk, see `gpu_attention_way`. multiplies_bfloat16: whether the GPU does.
    """

    config: ModelConfig
    chat: ChatPlan
    weights: WeightBytes
    plan: PagingPlan | None
    scratch_bytes: int = 0
    chunk_tokens: int | None = None
    attention: AttentionWay = "kernel"
    multiplies_bfloat16: bool = True

    @property
    def weight_bytes(self) -> int:
        """All weights, wherever they are."""
        return self.weights.total

    @property
    def host_embedding_bytes(self) -> int:
        """Of an embedding that lies in RAM: where the head is another matrix, a token reads one row of it."""
        return 0 if self.config.text.tie_word_embeddings else self.weights.parts.get(EMBEDDING_PART, 0)

    @property
    def head_part(self) -> str:
        """The part that logits are computed with: the embedding, unless the head is a matrix of its own."""
        return HEAD_PART if self.weights.parts.get(HEAD_PART) else EMBEDDING_PART

    def layouts(self) -> Iterator[GpuLayout]:
        """The ways to place it, each with one measure more than the one before, for the largest chunk."""
        kv_dtype = self.chat.kv_dtype_on_gpu(multiplies_bfloat16=self.multiplies_bfloat16)
        chunk = self.chunks()[0]
        yield GpuLayout(kv_dtype, False, chunk)
        swaps = self.plan is not None and self.weights.for_images > 0
        if swaps:
            yield GpuLayout(kv_dtype, True, chunk)
        if self.chat.may_shrink_cache and kv_dtype != "int8":
            yield GpuLayout("int8", swaps, chunk)

    def last_layouts(self) -> Iterator[GpuLayout]:
        """More ways, for what no layout of `layouts` fits: the processor takes over more and more.

        The head first: it costs a prompt next to nothing. Each layer costs every token of it. None without
        experts, which are no model of this kind.
        """
        if self.plan is None:
            return
        *_, smallest = self.layouts()
        for num_layers in range(self.config.text.num_hidden_layers + 1):
            host = HostParts(num_layers, has_head=True)
            yield replace(smallest, chunk_tokens=self.chunks()[-1], host=host)

    def chunks(self) -> list[int]:
        """The chunks that may be chosen, the largest first."""
        if self.chunk_tokens is not None:
            return [self.chunk_tokens]
        steps = (DEFAULT_CHUNK_TOKENS // SMALLEST_CHUNK_TOKENS).bit_length()
        return [DEFAULT_CHUNK_TOKENS >> step for step in range(steps)]

    def dense_bytes(self, layout: GpuLayout) -> int:
        """All that stays on the GPU besides experts and the chat."""
        return self.weights.dense - sum(self.moved_parts(layout).values()) + self.scratch_bytes

    def moved_parts(self, layout: GpuLayout) -> dict[str, int]:
        """Bytes that the GPU does without, by part."""
        parts = self.weights.parts
        moved = {EMBEDDING_PART: self.host_embedding_bytes}
        if layout.host.has_head:
            moved[self.head_part] = parts.get(self.head_part, 0)
        if layout.swaps_image_weights:
            moved |= {part: parts.get(part, 0) for part in IMAGE_PARTS}
        moved[ATTENTION_PART] = sum(one.as_is for one in self._host_projections(layout))
        return moved

    def host_weight_bytes(self, layout: GpuLayout) -> int:
        """Weights in RAM besides experts."""
        moved = self.moved_parts(layout)
        moved[ATTENTION_PART] = sum(one.on_host for one in self._host_projections(layout))
        return sum(moved.values())

    def host_cache_bytes(self, layout: GpuLayout) -> int:
        """The KV cache of layers that attend in RAM, of the whole context."""
        return self._kv_sizes(layout)[0].num_bytes

    def host_room_bytes(self, layout: GpuLayout) -> int:
        """What the largest chunk takes of RAM in such a layer."""
        if not layout.host.num_layers:
            return 0
        dtype = self.chat.dtype if self.config.quantization is None else "float32"
        context = self.chat.context_size
        return host_attention_bytes(self.config, min(layout.chunk_tokens, context), context, dtype)

    def host_bytes(self, layout: GpuLayout) -> int:
        """All that is kept in RAM besides experts."""
        return self.host_weight_bytes(layout) + self.host_cache_bytes(layout) + self.host_room_bytes(layout)

    def cache_bytes(self, layout: GpuLayout, num_tokens: int | None = None) -> int:
        """The KV cache on the GPU, grown to hold so many tokens; None for the whole context."""
        context = self.chat.context_size
        held = grown_tokens(context if num_tokens is None else num_tokens, context)
        return held * self._kv_sizes(layout)[1].bytes_per_token

    def _kv_sizes(self, layout: GpuLayout) -> tuple[KVSize, KVSize]:
        """Of the cache in RAM and on the GPU."""
        text = self.config.text
        return replace(self.chat, kv_dtype=layout.kv_dtype).kv_size(text).split(text, layout.host.num_layers)

    def _host_projections(self, layout: GpuLayout) -> tuple[ProjectionBytes, ...]:
        return self.weights.projections[: layout.host.num_layers]

    def encoding_room(self, layout: GpuLayout) -> int:
        """Workspace while an image is encoded."""
        return max(
            encoding_bytes(self.config.tower, patches, self.chat.item_bytes)
            + self._held_bytes(layout, patches)
            for patches in self._images()
        )

    def chunk_room(self, layout: GpuLayout) -> int:
        """Workspace while the last chunk of a prompt with images is read."""
        context, held = self.chat.context_size, max(self._held_bytes(layout, one) for one in self._images())
        chunk = min(layout.chunk_tokens, context)
        return held + chunk_bytes_on_gpu(self.config.text, chunk, context, self.attention)

    def room_bytes(self, layout: GpuLayout) -> int:
        """The workspace: of the phase that takes most, rounded up to what torch gives out."""
        return sum(workspace_pieces(max(self.encoding_room(layout), self.chunk_room(layout))))

    def window_bytes(self, layout: GpuLayout) -> int:
        """What weights that pass through the GPU take while images are encoded."""
        return aligned(self.weights.image_window, UNIT_BYTES) if layout.swaps_image_weights else 0

    def vision_bytes(self, layout: GpuLayout) -> int:
        """What experts do without while an image is encoded, besides the cache."""
        return lent_bytes(self.room_bytes(layout), self.encoding_room(layout)) + self.window_bytes(layout)

    def early_cache_bytes(self, layout: GpuLayout) -> int:
        """The cache while the first images are encoded: it has room for them already."""
        usual = self._tokens_of(_PATCHES if self.config.reads_images else 0)
        return self.cache_bytes(layout, min(max(usual, self.chat.image_tokens), self.chat.context_size))

    def most_tokens_with_image(self, layout: GpuLayout, shared_bytes: int) -> int:
        """Tokens of the longest conversation, of the whole context at most, that still takes an image."""
        assert self.plan is not None
        beside = self.plan.least_bytes + self.vision_bytes(layout)
        left = shared_bytes // self.plan.frame_bytes * self.plan.frame_bytes - beside
        step_bytes = self.cache_bytes(layout, 1)
        if not step_bytes:  # every layer attends in RAM
            return self.chat.context_size if left >= 0 else 0
        return min(self.chat.context_size, left // step_bytes * CACHE_STEP_TOKENS)

    def prefill_bytes(self, layout: GpuLayout) -> int:
        """What experts do without while the last chunk is read; what encoding took comes back in decode."""
        return self.room_bytes(layout) + self.cache_bytes(layout)

    def paged_bytes(self, layout: GpuLayout, times: int = 1) -> int:
        """The least that paged experts share with the chat: pages of so many tokens, and the largest phase.

        Images come first: later ones find less room.
        """
        assert self.plan is not None
        frame = self.plan.frame_bytes
        vision = self.vision_bytes(layout) + self.early_cache_bytes(layout)
        beside = max(vision, self.prefill_bytes(layout))
        return aligned(times * self.plan.least_bytes + beside, frame)

    def resident_bytes(self, layout: GpuLayout) -> int:
        """All experts beside the chat."""
        return self.weights.experts + self.cache_bytes(layout) + self.room_bytes(layout)

    def least_bytes(self) -> int:
        """The least besides what others have of the GPU, all measures taken."""
        smallest = self.chunks()[-1]
        least = []
        layouts = (*self.layouts(), *[*self.last_layouts()][-1:])
        for layout in (replace(one, chunk_tokens=smallest) for one in layouts):
            ways = [self.resident_bytes(layout)]
            if self.plan is not None:
                ways.append(self.paged_bytes(layout))
            least.append(self.dense_bytes(layout) + min(ways))
        return min(least)

    def slots_bytes(self, layout: GpuLayout, shared_bytes: int) -> int:
        """Whole frames for experts in decode, of bytes that they share with the cache and the workspace."""
        assert self.plan is not None
        frame, cache = self.plan.frame_bytes, self.cache_bytes(layout)
        return min(shared_bytes // frame * frame - cache, self.plan.most_bytes) // frame * frame

    def _images(self) -> tuple[list[int], ...]:
        """Patches of images that a prompt may bring: one of the usual size, and those of the chat."""
        return ([_PATCHES] if self.config.reads_images else []), self.chat.patch_counts

    def _held_bytes(self, layout: GpuLayout, patch_counts: list[int]) -> int:
        patches = sum(patch_counts)
        # Where no image can come, no chunk has tokens of several banks.
        chunk = min(layout.chunk_tokens, self.chat.context_size) if self.config.reads_images else 0
        tokens = self._tokens_of(patches)
        return image_prompt_bytes(self.config, patches, tokens, chunk, self.chat.item_bytes)

    def _tokens_of(self, num_patches: int) -> int:
        return num_patches // self.config.vision.spatial_merge_size**2 if num_patches else 0
