"""Reads the float checkpoint, and makes every tensor of the new one that needs no calibration tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import QKV, expert_pages, known_format, page_formats
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import QuantizationConfig
from ernie_local.packing import ExpertPage, pack_matrix, pack_page
from ernie_local.packing.formats import TILE_ROWS
from ernie_local.packing.layout import find_foreign
from ernie_local.packing.page import pack_foreign_page
from ernie_quant.expert import ExpertWeights
from ernie_quant.foreign import quantize_foreign
from ernie_quant.recipe import Recipe, quantize_matrix

BLOCK_ROWS = 256 * TILE_ROWS  # 42 MB of the embedding, whose 103,424 rows would be 1 GB


class FloatSource:
    """Reads a float checkpoint in float32, one expert or one block of a matrix at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def matrix(self, name: str) -> Iterator[torch.Tensor]:
        """The weights of the packed matrix `name`, in blocks of (rows, columns).

        Every block but the last has a multiple of TILE_ROWS rows.
        """
        parent, _, own = name.rpartition(".")
        if own == QKV:
            yield torch.cat([self.read(f"{parent}.{part}_proj.weight") for part in "qkv"])
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
        return ExpertWeights(*(self.read(f"{prefix}.{projection}") for projection in PROJECTIONS))

    def gated_mlp(self, name: str) -> ExpertWeights:
        """A dense layer's MLP, or merged shared experts."""
        return ExpertWeights(*(self.read(f"{name}.{projection}.weight") for projection in PROJECTIONS))

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A whole tensor in this dtype."""
        values = torch.empty(self.checkpoint.shape(name), dtype=dtype)
        self.checkpoint.read(name, values)
        return values


def fixed_tensor(
    entry: TensorEntry, source: FloatSource, tables: QuantizationConfig, recipe: Recipe
) -> Iterator[torch.Tensor]:
    """The values of the tensor in consecutive pieces. The recipe must need no calibration tokens."""
    name, _, format_name = entry.name.rpartition(".")
    pages = expert_pages(entry.name)
    if entry.dtype != torch.uint8:
        yield source.read(entry.name, entry.dtype)
    elif pages is not None:
        key = pages.layer_id, pages.bank
        table = tables.small_experts if pages.small else tables.experts
        for expert_id, expert_format in enumerate(table[key]):
            if expert_format == format_name:
                yield _page(source.expert(*key, expert_id), format_name, recipe)
    elif name in tables.gated_mlps:
        yield _page(source.gated_mlp(name), format_name, recipe)
    else:
        low_bit = known_format(format_name)
        for block in source.matrix(name):
            yield pack_matrix(quantize_matrix(block, low_bit, recipe))


def _page(weights: ExpertWeights, page_format: str, recipe: Recipe) -> torch.Tensor:
    matrices = (weights.gate, weights.up, weights.down)
    foreign = find_foreign(page_format)
    if foreign is not None:
        return pack_foreign_page(*(quantize_foreign(matrix, foreign, recipe.method) for matrix in matrices))
    gate_up, down = page_formats(page_format)
    pairs = zip(matrices, (gate_up, gate_up, down), strict=True)
    return pack_page(ExpertPage(*(quantize_matrix(matrix, low_bit, recipe) for matrix, low_bit in pairs)))
