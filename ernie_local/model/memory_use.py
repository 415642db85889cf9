"""What the network takes of memory beside its weights while it computes: from sizes alone, without torch.

The rules that the runtime keeps room by and the planner predicts by. Those of activations are measured, not
derived (docs/performance.md); those of the KV cache are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ernie_local.config import TextConfig, VisionConfig
from ernie_local.sizes import HUGE_PAGE

# Big enough that an expert's weights are read for many tokens at once, small enough that one layer's
# activations of the 28B model (2048 x 12288 in the dense layer) stay near 100 MiB.
DEFAULT_CHUNK_TOKENS = 2048
# Entries of one mask: 4 Mi are 4 MiB as bool and 16 MiB as the float that SDPA makes of it, at any context
# size.
MOST_MASK_ENTRIES = 4 << 20
# Small pictures share one pass through the tower; a large one goes alone, so that the tower's memory has a
# bound that does not grow with the number of pictures.
PATCHES_PER_PASS = 8192
# Of memory for each patch and column of the tower, while a block is computed: 110 KB a patch of 1280 columns
# were measured with 5184 patches.
_BYTES_A_PATCH = 96
_FLOAT_BYTES = 4
# Bytes of a number in the KV cache; int8 has a float32 scale for each head's vector beside it.
KV_ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_SMALL_PAGE = 4096


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
        scale_bytes = _FLOAT_BYTES if item_bytes == 1 else 0
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


def attention_bytes(config: TextConfig, num_new: int, num_all: int) -> int:
    """About what attention of `num_new` tokens takes beside the cache for looking at `num_all` tokens.

    Masks, and the cached keys and values as numbers to compute with, twice for a moment. With one new token
    nothing: it reads the cache where it lies.
    """
    if num_new == 1:
        return 0
    states = 2 * config.num_key_value_heads * config.head_dim * _FLOAT_BYTES  # of one token
    return num_all * (2 * states + num_new) + _FLOAT_BYTES * min(MOST_MASK_ENTRIES, num_new * num_all)


def tower_passes(patch_counts: Sequence[int]) -> list[int]:
    """How many pictures go through the tower together, pass by pass. patch_counts: of each, in order."""
    passes: list[int] = []
    room = 0
    for num_patches in patch_counts:
        if not passes or num_patches > room:
            passes.append(0)
            room = PATCHES_PER_PASS
        passes[-1] += 1
        room -= num_patches
    return passes


def encoding_bytes(config: VisionConfig, patch_counts: Sequence[int]) -> int:
    """About as much memory as encoding pictures takes beside the results (measured, within a tenth)."""
    most = start = 0
    for num_pictures in tower_passes(patch_counts):
        most = max(most, sum(patch_counts[start : start + num_pictures]))
        start += num_pictures
    return most * config.hidden_size * _BYTES_A_PATCH
