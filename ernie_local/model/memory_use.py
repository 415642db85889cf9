"""Computes the memory that the network takes besides its weights, from sizes alone, without torch.

The runtime keeps room by these rules, and the planner predicts by them. The rules for activations are
measured (docs/performance.md); those for the KV cache are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ernie_local.config import ModelConfig, TextConfig, VisionConfig
from ernie_local.kernels.attention_pieces import AttentionPiece
from ernie_local.kernels.native import attends_in_blocks
from ernie_local.sizes import HUGE_PAGE, MIB

FLOAT_BYTES = 4  # of a float32
# Big enough that an expert's weights are read for many tokens at once, small enough that one layer's
# activations of the 28B model (2048 x 12288 in the dense layer) stay near 100 MiB.
DEFAULT_CHUNK_TOKENS = 2048
SMALLEST_CHUNK_TOKENS = 128  # where memory is scarce
# Small images share one pass through the tower; a large one goes alone, so that the tower's memory has a
# bound that does not grow with the number of images.
PATCHES_PER_PASS = 8192
# The tower's MLP, its norms and the resampler take so many rows at a time: their inner activations, 10 MiB in
# float32, stay in the caches.
ROWS_AT_ONCE = 512
# Numbers for each patch and column of the tower while an image is encoded (the patch, its query, key and
# value, and what attention makes of them), and for each of ROWS_AT_ONCE and column (of MLP or resampler).
# Measured with 1280 columns in float32: 60, 143 and 298 MiB for 900, 3600 and 11088 patches.
_NUMBERS_A_PATCH, _NUMBERS_A_ROW = 5, 28
_NUMBERS_A_WAITING_PATCH = 2  # of a pass that waits: the patch, and its angles in float32, which are narrower
# Logits of a whole prompt are made for so many tokens at a time that they take this much in float32: a part
# of the slack that every plan keeps.
_LOGITS_BYTES = 32 * MIB
# Bytes of a number in the KV cache; int8 has a float32 scale for each head's vector beside it.
KV_ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
# How a prompt's chunk attends. On the CPU: by torch with masks, or in blocks by our own operator; on a GPU:
# by Triton's kernel, or by torch in pieces.
AttentionWay = Literal["masks", "blocks", "kernel", "pieces"]
_SMALL_PAGE = 4096
# The step in which a cache grows: 56 MiB of the 28B model in bfloat16. Each step copies the whole cache;
# smaller steps would cost more copying than they give to experts.
CACHE_STEP_TOKENS = 1024
# Rounded keys and values that attention in blocks holds (csrc/block_attention.cpp): 8.3 MiB at most.
_BLOCK_TOKENS, _BLOCKS_HELD, _BLOCK_BYTES = 128, 128, 66624
_ALIGNED_TOKENS = 64  # its rows begin at multiples of 256 bytes, whatever the context size


@dataclass(frozen=True, slots=True)
class KVSize:
    """Bytes of a KV cache. rows: keys and values of each head of each layer; capacity: tokens of a row."""

    rows: int
    capacity: int
    state_bytes: int  # of one token in a row
    scale_bytes: int

    @staticmethod
    def of(config: TextConfig, capacity: int, item_bytes: int) -> KVSize:
        """item_bytes: of a number, as in KV_ITEM_BYTES."""
        rows = config.num_hidden_layers * 2 * config.num_key_value_heads
        scale_bytes = FLOAT_BYTES if item_bytes == 1 else 0
        return KVSize(rows, capacity, config.head_dim * item_bytes, scale_bytes)

    def split(self, config: TextConfig, num_layers: int) -> tuple[KVSize, KVSize]:
        """Of the first `num_layers` layers, and of the others."""
        first = num_layers * 2 * config.num_key_value_heads
        return replace(self, rows=first), replace(self, rows=self.rows - first)

    def holding(self, num_tokens: int) -> KVSize:
        """With another capacity."""
        return replace(self, capacity=num_tokens)

    @property
    def bytes_per_token(self) -> int:
        """Over its layers: exact."""
        return self.rows * (self.state_bytes + self.scale_bytes)

    @property
    def num_bytes(self) -> int:
        """Of the whole allocation."""
        return self.capacity * self.bytes_per_token

    def touched_bytes(self, num_tokens: int) -> int:
        """Memory in use once `num_tokens` have been stored; the system gives it in whole pages."""
        row_bytes = self.capacity * self.state_bytes
        page_bytes = HUGE_PAGE if self.rows * row_bytes >= HUGE_PAGE else _SMALL_PAGE
        used_bytes = -(-num_tokens * self.state_bytes // page_bytes) * page_bytes
        states = self.rows * min(row_bytes + page_bytes, used_bytes + page_bytes)
        return min(self.rows * row_bytes, states) + self.rows * self.capacity * self.scale_bytes


def grown_tokens(num_tokens: int, context_size: int) -> int:
    """Tokens that a growing cache has memory for when it holds `num_tokens`, of at most `context_size`."""
    stepped = -(-num_tokens // CACHE_STEP_TOKENS) * CACHE_STEP_TOKENS
    return min(stepped, -(-context_size // _ALIGNED_TOKENS) * _ALIGNED_TOKENS)


def cpu_attention_way(config: ModelConfig, dtype: str) -> AttentionWay:
    """How a chunk of a prompt attends on the CPU. dtype: of hidden states.

    In blocks only in a packed model: what they round is little next to packed products, but a plain model is
    exact.
    """
    in_blocks = dtype == "float32" and attends_in_blocks(config.text.head_dim)
    return "blocks" if config.quantization is not None and in_blocks else "masks"


def gpu_attention_way(*, has_triton: bool) -> AttentionWay:
    """How a chunk of a prompt attends on a GPU: by Triton's kernel where it runs."""
    return "kernel" if has_triton else "pieces"


def attention_bytes(config: TextConfig, num_new: int, num_all: int, way: AttentionWay) -> int:
    """About the bytes that attention of `num_new` tokens to `num_all` tokens takes besides the cache.

    Masks: as bool and as the numbers that SDPA makes of them, and the cached keys and values converted for
    computing, twice for a moment. Blocks: those that are held at a time, which stay, and two numbers for each
    row. On the CPU one new token takes nothing: it reads the cache in place.

    Pieces: one of them. The kernel: nothing for a chunk, but one token is attended to in pieces where the GPU
    does not multiply what the cache holds.
    """
    if way in ("kernel", "pieces"):
        in_pieces = 1 if way == "kernel" else num_new
        of_heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        return AttentionPiece.of(*of_heads, in_pieces, num_all).num_bytes
    if num_new == 1:
        return 0
    if way == "blocks":
        heads = config.num_key_value_heads
        blocks = heads * min(-(-num_all // _BLOCK_TOKENS), max(1, _BLOCKS_HELD // heads))
        return blocks * _BLOCK_BYTES + 2 * FLOAT_BYTES * config.num_attention_heads * num_new
    states = 2 * config.num_key_value_heads * config.head_dim * FLOAT_BYTES  # of one token
    # SDPA makes one block of a mask at a time, but each is a little wider than the one before, so the
    # allocator cannot reuse the memory of earlier ones: all of them stay.
    return num_all * (2 * states + (1 + FLOAT_BYTES) * num_new)


def working_bytes(config: TextConfig, chunk_tokens: int) -> int:
    """About what a chunk of a prompt takes while a layer is computed.

    Hidden states and what attention makes of them, and the widest layer's inner activations with their int8
    copies. Within a tenth of what was measured with the 28B model's sizes, 0.25 MiB a token.
    """
    return chunk_tokens * (_states_bytes(config) + _inner_bytes(config))


def chunk_bytes_on_gpu(config: TextConfig, num_new: int, num_all: int, way: AttentionWay) -> int:
    """What a GPU computes `num_new` tokens behind others with, besides weights and the cache.

    A layer attends before its inner activations are there, so the larger of both counts. One token takes
    little that is not counted. num_all: with the new ones; way: how they attend.
    """
    if num_new == 1:
        return 0
    inner = num_new * _inner_bytes(config)
    return num_new * _states_bytes(config) + max(inner, attention_bytes(config, num_new, num_all, way))


def host_attention_bytes(config: ModelConfig, num_new: int, num_all: int, dtype: str) -> int:
    """About what attention of a chunk takes of RAM in layers that attend there beside a GPU.

    num_all: with the new ones; dtype: of hidden states there. The states count in float32, as the angles.
    """
    way = cpu_attention_way(config, dtype)
    return num_new * _states_bytes(config.text) + attention_bytes(config.text, num_new, num_all, way)


def _states_bytes(config: TextConfig) -> int:
    return 48 * config.hidden_size


def _inner_bytes(config: TextConfig) -> int:
    widest = max((bank.expert_size for bank in config.banks), default=0)
    routed = config.experts_per_token * widest + config.shared_expert_size
    return 10 * max(config.intermediate_size, routed)


def logits_rows(config: TextConfig) -> int:
    """Tokens of a prompt whose logits are made at a time."""
    return max(1, _LOGITS_BYTES // (config.vocab_size * FLOAT_BYTES))


def tower_passes(patch_counts: Sequence[int]) -> Iterator[slice]:
    """Which images go through the tower together, pass by pass. patch_counts: of each, in order."""
    start = num_patches = 0
    for index, count in enumerate(patch_counts):
        if index > start and num_patches + count > PATCHES_PER_PASS:
            yield slice(start, index)
            start, num_patches = index, 0
        num_patches += count
    if patch_counts:
        yield slice(start, len(patch_counts))


def mixed_chunk_bytes(config: TextConfig, chunk_tokens: int, item_bytes: int) -> int:
    """What a chunk with tokens of several banks takes more than one of text alone: states and results of each
    bank, and shared experts computed apart (counted in model/moe.py)."""
    return chunk_tokens * item_bytes * (4 * config.hidden_size + 2 * config.shared_expert_size)


def image_prompt_bytes(
    config: ModelConfig, num_patches: int, num_image_tokens: int, chunk_tokens: int, item_bytes: int
) -> int:
    """What a prompt with images takes more than one of text, from their encoding until it has been read.

    Patches in float32; each image's features, and all of them in one piece; and a chunk of several banks.
    """
    patches = num_patches * config.vision.patch_values * FLOAT_BYTES if num_patches else 0
    features = 2 * num_image_tokens * config.text.hidden_size * item_bytes
    return patches + features + mixed_chunk_bytes(config.text, chunk_tokens, item_bytes)


def encoding_bytes(
    config: VisionConfig | None,
    patch_counts: Sequence[int],
    item_bytes: int = FLOAT_BYTES,
    passes_at_once: int = 1,
) -> int:
    """About the most memory that encoding images takes besides the results. item_bytes: of a number that is
    computed with. passes_at_once: through the tower, of which each waits for the others after every block.
    config: None for a model that reads only text, which encodes none."""
    if config is None:
        return 0
    sizes = [sum(patch_counts[together]) for together in tower_passes(patch_counts)]
    groups = [sizes[start : start + passes_at_once] for start in range(0, len(sizes), passes_at_once)]
    numbers = (
        _NUMBERS_A_PATCH * max(group)
        + _NUMBERS_A_WAITING_PATCH * (sum(group) - max(group))
        + _NUMBERS_A_ROW * min(max(group), ROWS_AT_ONCE)
        for group in groups
    )
    return max(numbers, default=0) * config.hidden_size * item_bytes


def prompt_room(
    config: ModelConfig,
    num_tokens: int,
    chunk_tokens: int,
    patch_counts: Sequence[int],
    prompt_patches: int,
    item_bytes: int,
    way: AttentionWay,
) -> int:
    """What the largest prompt takes for a while besides weights, KV cache and a chunk at work.

    num_tokens: of the context. patch_counts, prompt_patches: of images that are encoded one after the other,
    and of all that one prompt brings. item_bytes: of a number that is computed with.
    """
    chunk = min(chunk_tokens, num_tokens)
    if not config.reads_images:
        return attention_bytes(config.text, chunk, num_tokens, way)
    encoding = encoding_bytes(config.vision, patch_counts, item_bytes)
    at_work = max(attention_bytes(config.text, chunk, num_tokens, way), encoding)
    num_image_tokens = prompt_patches // config.vision.spatial_merge_size**2
    return at_work + image_prompt_bytes(config, prompt_patches, num_image_tokens, chunk, item_bytes)
