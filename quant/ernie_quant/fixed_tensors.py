"""What of a checkpoint needs no calibration tokens: tensors that stay, or are quantized from themselves.

Owns which bytes each tensor of the new checkpoint gets. Knows nothing of layers' order or of resuming.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ernie_local.checkpoint.packed import expert_pages, known_format, page_formats
from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import QuantizationConfig
from ernie_local.packing import ExpertPage, pack_matrix, pack_page
from ernie_local.packing.foreign_formats import find_foreign
from ernie_quant.expert import ExpertWeights
from ernie_quant.foreign import foreign_page
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.source import Source


def fixed_tensor(
    entry: TensorEntry, source: Source, tables: QuantizationConfig, recipe: Recipe
) -> Iterator[torch.Tensor]:
    """The values of the tensor in pieces, one after the other. The recipe must be one without data."""
    name, _, format_name = entry.name.rpartition(".")
    pages = expert_pages(entry.name)
    if entry.dtype != torch.uint8:
        yield source.plain(entry.name)
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
    foreign = find_foreign(page_format)
    if foreign is not None:
        return foreign_page(weights.gate, weights.up, weights.down, foreign, recipe.method)
    gate_up, down = page_formats(page_format)
    return pack_page(
        ExpertPage(
            quantize_matrix(weights.gate, gate_up, recipe),
            quantize_matrix(weights.up, gate_up, recipe),
            quantize_matrix(weights.down, down, recipe),
        )
    )
