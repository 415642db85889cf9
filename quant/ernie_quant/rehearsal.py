"""The largest unit and its saving tried out before hours are spent: what would fail at the end fails now.

Gives the pace as well. Knows the largest expert only, on random tokens.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ernie_local.checkpoint.packed import page_formats
from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_local.errors import DoesNotFit
from ernie_local.packing import pack_page
from ernie_local.packing.expert_page import read_layout
from ernie_quant.costs import expert_cost
from ernie_quant.expert import ExpertInputs, quantize_expert
from ernie_quant.recipe import Recipe
from ernie_quant.source import Source

_TOKENS = 512


def rehearse(
    source: Source, config: ModelConfig, tables: QuantizationConfig, recipe: Recipe, directory: Path
) -> float:
    """Seconds for a unit of cost: the largest expert quantized, its pages in `directory` and read back.

    recipe: with the method `gptq`. DoesNotFit if the page cannot be written.
    """
    layer_id, bank = max(tables.experts, key=lambda key: config.text.bank(key[1]).expert_size)
    formats = [table[layer_id, bank][0] for table in (tables.experts, tables.small_experts) if table]
    hidden_size = config.text.hidden_size
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(_TOKENS, hidden_size, generator=generator)]
    weights = torch.rand(_TOKENS, generator=generator)
    inputs = ExpertInputs(_Listed(tokens), weights, _Listed(tokens), torch.eye(hidden_size))
    began = time.perf_counter()
    expert = source.expert(layer_id, bank, 0)
    pages, _ = quantize_expert(expert, inputs, recipe, *map(page_formats, formats))
    for page in pages:
        _save_and_read(pack_page(page), directory / "rehearsal")
    seconds = time.perf_counter() - began
    return seconds / expert_cost(config, bank, _TOKENS, recipe)


class _Listed(list[torch.Tensor]):
    """Parts whose tokens are counted together."""

    def __len__(self) -> int:
        return sum(part.shape[0] for part in self)


def _save_and_read(packed: torch.Tensor, path: Path) -> None:
    try:
        path.write_bytes(packed.numpy().tobytes())
        again = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    except OSError as error:
        raise DoesNotFit(
            f"a page of {packed.numel()} bytes cannot be written to {path.parent} and read back",
            error.strerror or str(error),
            "free some room there, or name a directory on another disk",
        ) from error
    path.unlink()
    assert torch.equal(again, packed), path
    read_layout(again, str(path))
