"""Arguments for the operators of a decoded token, and what equal means for their results."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch

from ernie_local.kernels.arguments import LayerStorage, NewToken

LARGEST_ERROR = 1e-5  # of the largest: float32 rounding, and nothing else


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to LARGEST_ERROR of the largest; NaN and infinity where they are expected and nowhere else."""
    assert actual.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    assert torch.equal(actual[~finite].nan_to_num(), expected[~finite].nan_to_num())
    if finite.any():
        difference = (actual - expected)[finite].abs().max()
        assert difference <= LARGEST_ERROR * expected[finite].abs().max()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Case(NamedTuple):
    """The arguments of decode_attention, one by one as the compiled module takes them."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor
    cached_keys: torch.Tensor
    cached_values: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None
    length: int

    @property
    def arguments(self) -> tuple[NewToken, LayerStorage, int]:
        """As the operator takes them."""
        return NewToken(*self[:5]), LayerStorage(*self[5:9]), self.length

    def copy(self) -> Case:
        return copy.deepcopy(self)

    @property
    def cache(self) -> list[torch.Tensor]:
        return [part for part in self[5:9] if part is not None]


def make_case(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, length: int, capacity: int
) -> Case:
    """A cache with `length` random tokens; behind them lies NaN (for int8 in the scales), not to be read."""
    angles = randn(head_dim // 2, seed=3)
    shape = (kv_heads, capacity, head_dim)
    cached = []
    scales: list[torch.Tensor | None] = [None, None]
    for index in range(2):
        states = randn(*shape, seed=4 + index)
        if dtype == torch.int8:
            scale = states.abs().amax(-1, keepdim=True) / 127
            states = (states / scale).round()
            scale[:, length:] = torch.nan
            scales[index] = scale
        else:
            states[:, length:] = torch.nan
        cached.append(states.to(dtype))
    return Case(
        randn(heads, head_dim, seed=6), randn(kv_heads, head_dim, seed=7), randn(kv_heads, head_dim, seed=8),
        angles.cos(), angles.sin(), cached[0], cached[1], scales[0], scales[1], length,
    )  # fmt: skip
