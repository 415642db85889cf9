"""Many new tokens whose keys and values are in a cache already, and what they see, in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ernie_local.kernels.arguments import LayerStorage
from tests.runtime.decode_cases import make_case, randn


class StoredChunk(NamedTuple):
    """The arguments of a GPU's attention to a chunk."""

    queries: Tensor  # (tokens, heads, head_dim)
    cache: LayerStorage
    length: int  # of what was cached before

    @property
    def num_new(self) -> int:
        return len(self.queries)


def make_chunk(
    sizes: tuple[int, int, int], dtype: torch.dtype, num_new: int, length: int, seed: int = 6
) -> StoredChunk:
    """sizes: heads, heads of keys, head_dim. Behind the new tokens lies NaN, not to be read."""
    visible = length + num_new
    cached = make_case(*sizes, dtype, visible, visible + 3)
    return StoredChunk(randn(num_new, sizes[0], sizes[2], seed=seed), LayerStorage(*cached[5:9]), length)


def exact_attention(chunk: StoredChunk) -> Tensor:
    """By torch with an explicit mask, whose lower right corner is the last token that sees itself."""
    visible = chunk.length + chunk.num_new
    cache = chunk.cache
    keys, values = (
        part[:, :visible].double() * (1 if scales is None else scales[:, :visible])
        for part, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
    )
    mask = torch.ones(chunk.num_new, visible, dtype=torch.bool).tril(chunk.length)
    attended = functional.scaled_dot_product_attention(
        chunk.queries.double().transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=mask,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1).float()
