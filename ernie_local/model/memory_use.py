"""What the network takes of memory beside its weights while it computes: from sizes alone, without torch.

The rules that the runtime keeps room by and the planner predicts by. Those of activations are measured, not
derived (docs/performance.md); those of the KV cache are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ernie_local.config import ModelConfig, TextConfig, VisionConfig
from ernie_local.sizes import HUGE_PAGE

# Big enough that an expert's weights are read for many tokens at once, small enough that one layer's
# activations of the 28B model (2048 x 12288 in the dense layer) stay near 100 MiB.
DEFAULT_CHUNK_TOKENS = 2048
# Small images share one pass through the tower; a large one goes alone, so that the tower's memory has a
# bound that does not grow with the number of images.
PATCHES_PER_PASS = 8192
# Of memory for each patch and column of the tower while it is encoded, and beside that for each two columns,
# whose products want their weights in another order. Measured with 1280 columns: 600, 1100 and 2050 MiB for
# 3600, 11088 and 24552 patches.
_BYTES_A_PATCH, _BYTES_A_WEIGHT = 64, 211
FLOAT_BYTES = 4  # of a float32
# Bytes of a number in the KV cache; int8 has a float32 scale for each head's vector beside it.
KV_ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_SMALL_PAGE = 4096
# A cache that grows does so by so many tokens: 56 MiB of the 28B model in bfloat16. Each step copies all that
# is there; smaller ones would copy more often than experts gain by them.
CACHE_STEP_TOKENS = 1024
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

    @property
    def bytes_per_token(self) -> int:
        """Over all layers: exact."""
        return self.rows * (self.state_bytes + self.scale_bytes)

    @property
    def num_bytes(self) -> int:
        """Of the whole allocation."""
        return self.capacity * self.bytes_per_token

    def touched_bytes(self, num_tokens: int) -> int:
        """Memory that is really taken once so many tokens have been stored: it comes in whole pages."""
        row_bytes = self.capacity * self.state_bytes
        page_bytes = HUGE_PAGE if self.rows * row_bytes >= HUGE_PAGE else _SMALL_PAGE
        used_bytes = -(-num_tokens * self.state_bytes // page_bytes) * page_bytes
        states = self.rows * min(row_bytes + page_bytes, used_bytes + page_bytes)
        return min(self.rows * row_bytes, states) + self.rows * self.capacity * self.scale_bytes


def grown_tokens(num_tokens: int, context_size: int) -> int:
    """For how many tokens a cache that grows has memory when it holds so many, of at most `context_size`."""
    stepped = -(-num_tokens // CACHE_STEP_TOKENS) * CACHE_STEP_TOKENS
    return min(stepped, -(-context_size // _ALIGNED_TOKENS) * _ALIGNED_TOKENS)


def attention_bytes(config: TextConfig, num_new: int, num_all: int) -> int:
    """About what attention of `num_new` tokens takes beside the cache for looking at `num_all` tokens.

    Masks, as bool and as the numbers that SDPA makes of them, and the cached keys and values as numbers to
    compute with, twice for a moment. With one new token nothing: it reads the cache where it lies.
    """
    if num_new == 1:
        return 0
    states = 2 * config.num_key_value_heads * config.head_dim * FLOAT_BYTES  # of one token
    # SDPA makes one block of a mask at a time, but each is a little wider than the one before, so that the
    # allocator finds no hole for it: all of them stay.
    return num_all * (2 * states + (1 + FLOAT_BYTES) * num_new)


def tower_passes(patch_counts: Sequence[int]) -> list[int]:
    """How many images go through the tower together, pass by pass. patch_counts: of each, in order."""
    passes: list[int] = []
    room = 0
    for num_patches in patch_counts:
        if not passes or num_patches > room:
            passes.append(0)
            room = PATCHES_PER_PASS
        passes[-1] += 1
        room -= num_patches
    return passes


def mixed_chunk_bytes(config: TextConfig, chunk_tokens: int, item_bytes: int) -> int:
    """What a chunk with tokens of both banks takes beside one of text alone: states and results of each on
    their own, and shared experts apart (counted in model/moe.py)."""
    return chunk_tokens * item_bytes * (4 * config.hidden_size + 2 * config.shared_expert_size)


def image_prompt_bytes(
    config: ModelConfig, num_patches: int, num_image_tokens: int, chunk_tokens: int, item_bytes: int
) -> int:
    """What a prompt with images takes from their encoding until it has been read, beside one of text.

    Patches in float32; each image's features, and all of them in one piece; and a chunk of both banks.
    """
    patches = num_patches * config.vision.patch_values * FLOAT_BYTES
    features = 2 * num_image_tokens * config.text.hidden_size * item_bytes
    return patches + features + mixed_chunk_bytes(config.text, chunk_tokens, item_bytes)


def encoding_bytes(config: VisionConfig, patch_counts: Sequence[int]) -> int:
    """About as much memory as encoding images takes beside the results (measured, within a tenth)."""
    most = start = 0
    for num_images in tower_passes(patch_counts):
        most = max(most, sum(patch_counts[start : start + num_images]))
        start += num_images
    weights = _BYTES_A_WEIGHT * config.hidden_size**2 if most else 0
    return most * config.hidden_size * _BYTES_A_PATCH + weights


def prompt_room(
    config: ModelConfig,
    num_tokens: int,
    chunk_tokens: int,
    image_patches: int,
    prompt_patches: int,
    item_bytes: int,
) -> int:
    """What the largest prompt takes for a while beside weights, KV cache and a chunk at work.

    num_tokens: of the context. image_patches, prompt_patches: of the largest image, and of all that one
    prompt brings. item_bytes: of a number that is computed with.
    """
    chunk = min(chunk_tokens, num_tokens)
    encoding = encoding_bytes(config.vision, [image_patches])
    at_work = max(attention_bytes(config.text, chunk, num_tokens), encoding)
    num_image_tokens = prompt_patches // config.vision.spatial_merge_size**2
    return at_work + image_prompt_bytes(config, prompt_patches, num_image_tokens, chunk, item_bytes)
