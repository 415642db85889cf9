"""The float checkpoint that is quantized: its matrices by the names of the new one.

Owns which tensors make one packed matrix. Knows nothing of how they are quantized.
"""

from __future__ import annotations

import torch

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import QKV
from ernie_local.checkpoint.reader import Checkpoint
from ernie_quant.expert import ExpertWeights


class Source:
    """Reads in float32, one matrix or expert at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def matrix(self, name: str) -> torch.Tensor:
        """The weights that the packed matrix `name` stands for, (rows, columns)."""
        parent, _, own = name.rpartition(".")
        if own == QKV:
            return torch.cat([self._read(f"{parent}.{part}_proj.weight") for part in "qkv"])
        if name == "lm_head" and "lm_head.weight" not in self.checkpoint:
            return self._read("embed_tokens.weight")  # tied
        return self._read(f"{name}.weight")

    def expert(self, layer_id: int, bank: str, expert_id: int) -> ExpertWeights:
        """One routed expert."""
        prefix = f"experts.{layer_id}.{bank}.{expert_id}"
        return ExpertWeights(*(self._read(f"{prefix}.{projection}") for projection in PROJECTIONS))

    def gated_mlp(self, name: str) -> ExpertWeights:
        """A dense layer's MLP, or merged shared experts."""
        return ExpertWeights(*(self._read(f"{name}.{projection}.weight") for projection in PROJECTIONS))

    def plain(self, name: str) -> torch.Tensor:
        """A tensor that stays as it is, in its own dtype."""
        return self._read(name, self.checkpoint.dtype(name))

    def _read(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        values = torch.empty(self.checkpoint.shape(name), dtype=dtype)
        self.checkpoint.read(name, values)
        return values
