"""RMSNorm as the language model and the resampler use it; knows nothing of where it stands in a layer.

The vision tower uses torch's own LayerNorm.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from ernie_local.kernels.norm_route import rms_norm
from ernie_local.kernels.operators import MOST_TOKENS, suits_decode_ops


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    The mean is taken in float32 and the result is cast back before the weight is applied: the order in
    which the model was trained, and the one that decides router near-ties in 16-bit runs.
    """

    def __init__(self, size: int, eps: float, is_packed: bool = False) -> None:
        """is_packed: whether it belongs to a model with packed weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        # For many tokens the operator saves three of four passes over memory, but sums in another order than
        # torch, so that near-ties of routers fall otherwise. Where weights are packed that does not matter.
        self._most_native_tokens = sys.maxsize if is_packed else MOST_TOKENS

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., size) in any float dtype -> the same shape and dtype."""
        if suits_decode_ops(hidden, self._most_native_tokens):
            return rms_norm(hidden, self.weight, self.eps)
        exact = hidden.float()
        mean_square = exact.pow(2).mean(-1, keepdim=True)
        return self.weight * (exact * torch.rsqrt(mean_square + self.eps)).to(hidden.dtype)
