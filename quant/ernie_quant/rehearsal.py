"""Rehearses a run: makes an expert of each bank before hours of work, to time it and to see it fail early."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from ernie_local.checkpoint.packed import page_formats
from ernie_local.config import Bank, BankKey, ModelConfig
from ernie_local.errors import DoesNotFit
from ernie_local.packing import pack_page
from ernie_local.packing.page import read_layout
from ernie_quant.calibration import NEIGHBOURS_PER_COLUMN
from ernie_quant.expert import ExpertInputs, ExpertWeights, OutputGradients, quantize_expert
from ernie_quant.layer import CHUNK_TOKENS
from ernie_quant.plan import expert_cost
from ernie_quant.recipe import Recipe
from ernie_quant.tokens import RowFile

_TIMED_SECONDS = 0.5


def rehearse(
    config: ModelConfig, recipe: Recipe, directory: Path, num_tokens: Mapping[Bank, float]
) -> dict[str, float]:
    """Quantize a random expert of each bank on random tokens; the seconds a cost, by kind.

    Its pages are written to `directory` and read back, and its tokens lie there as those of a run do. config:
    with the new tables; recipe: with the method `gptq`; num_tokens: of an expert of each bank, of which at
    most one chunk is drawn. DoesNotFit if a page cannot be written.
    """
    assert config.quantization is not None
    layers = {bank: layer_id for layer_id, bank in reversed(list(config.quantization.experts))}
    rehearsal = _Rehearsal(config, recipe, directory)
    for bank, layer_id in layers.items():  # the first time, libraries are loaded and threads started
        rehearsal.make((layer_id, bank), [torch.zeros(1, config.text.hidden_size)], 1)
    paces: dict[str, float] = {}
    for bank, layer_id in layers.items():
        count = max(1, min(CHUNK_TOKENS, round(num_tokens[bank])))
        with _scattered_tokens(directory, count, config.text.hidden_size) as tokens:
            took: list[float] = []
            while (
                not took or sum(took) < _TIMED_SECONDS
            ):  # the experts of small models take hundredths of a second
                began = time.perf_counter()
                rehearsal.make((layer_id, bank), tokens, count)
                took.append(time.perf_counter() - began)
        paces[f"expert {bank}"] = median(took) / expert_cost(config, bank, count, recipe)
    return paces


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    config: ModelConfig
    recipe: Recipe
    directory: Path

    def make(self, place: BankKey, tokens: Iterable[torch.Tensor], num_tokens: int) -> None:
        """Do all that a run does for an expert with these tokens."""
        bank = place[1]
        tables, text = self.config.quantization, self.config.text
        assert tables is not None
        generator = torch.Generator().manual_seed(0)
        num_neighbours = NEIGHBOURS_PER_COLUMN * text.bank(bank).expert_size
        neighbours = torch.randn(num_neighbours, text.hidden_size, generator=generator)
        weights = torch.rand(num_tokens, generator=generator)
        inputs = ExpertInputs(tokens, weights, [neighbours], num_neighbours, torch.eye(text.hidden_size))
        if self.recipe.by_answers:
            own = torch.randn(num_tokens, text.hidden_size, generator=generator)
            even = torch.eye(text.hidden_size) / text.hidden_size
            inputs = replace(inputs, gradients=OutputGradients([own], num_tokens, even))
        formats = [table[place][0] for table in (tables.experts, tables.small_experts) if table]
        shape = text.bank(bank).expert_size, text.hidden_size
        # The weights may be on a hub still; others of this size take as long.
        gate, up, down = (torch.randn(shape, generator=generator) for _ in range(3))
        expert = ExpertWeights(gate, up, down.t().contiguous())
        pages, _ = quantize_expert(expert, inputs, self.recipe, *map(page_formats, formats))
        for page in pages:
            _save_and_read(pack_page(page), self.directory / "rehearsal")


@dataclass(frozen=True, slots=True)
class _ScatteredTokens:
    """Rows of a file, read again each time, no two of which follow each other."""

    states: RowFile
    rows: torch.Tensor

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield self.states.read(self.rows)


@contextmanager
def _scattered_tokens(directory: Path, count: int, hidden_size: int) -> Iterator[_ScatteredTokens]:
    path = directory / "rehearsal.states"
    try:
        with RowFile(path, 2 * count, hidden_size, is_new=True) as states:
            drawn = torch.randn(2 * count, hidden_size, generator=torch.Generator().manual_seed(1))
            states.write(slice(None), drawn)
            yield _ScatteredTokens(states, torch.arange(0, 2 * count, 2))
    finally:
        path.unlink(missing_ok=True)


def _save_and_read(packed: torch.Tensor, path: Path) -> None:
    try:
        with path.open("wb") as file:
            file.write(packed.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        again = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    except OSError as error:
        raise DoesNotFit(
            f"a page of {packed.numel()} bytes cannot be written to {path.parent} and read back",
            error.strerror or str(error),
            "free some space there, or name a directory on another disk",
        ) from error
    path.unlink()
    assert torch.equal(again, packed), path
    read_layout(again, str(path))
