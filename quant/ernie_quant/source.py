"""The float checkpoint that is quantized: its matrices by the names of the new one.

Owns which tensors make one packed matrix. Knows nothing of how they are quantized.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import QKV
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.packing.formats import TILE_ROWS
from ernie_quant.expert import ExpertWeights

BLOCK_ROWS = 256 * TILE_ROWS  # 42 MB of the embedding, whose 103,424 rows would be 1 GB


class Source:
    """Reads in float32, one expert or block of a matrix at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def matrix(self, name: str) -> Iterator[torch.Tensor]:
        """The weights that the packed matrix `name` stands for, in blocks of (rows, columns).

        Every block but the last has a multiple of TILE_ROWS rows.
        """
        parent, _, own = name.rpartition(".")
        if own == QKV:
            yield torch.cat([self._read(f"{parent}.{part}_proj.weight") for part in "qkv"])
            return
        is_tied = name == "lm_head" and "lm_head.weight" not in self.checkpoint
        plain = "embed_tokens.weight" if is_tied else f"{name}.weight"
        rows, columns = self.checkpoint.shape(plain)
        for start in range(0, rows, BLOCK_ROWS):
            block = torch.empty(min(BLOCK_ROWS, rows - start), columns)
            self.checkpoint.read_rows(plain, start, block)
            yield block

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
