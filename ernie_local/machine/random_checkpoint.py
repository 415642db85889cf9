"""A checkpoint with random weights, to run and time where answers do not matter.

Router weights are random with a mean of zero, so that tokens spread over experts. Knows no sizes of its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ernie_local.checkpoint.packed import PackedTensors, known_format
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.checkpoint.writer import TensorEntry, write_checkpoint
from ernie_local.config import ModelConfig, QuantizationConfig, parse_config
from ernie_local.machine.random_weights import WEIGHT_DEVIATION, RandomWeights
from ernie_local.packing import PageLayout

_ROWS_A_PIECE = 1024
# As large as what the layers add: else the mean over all tokens, which attention adds, outweighs embeddings,
# and all tokens go to the same experts.
_EMBEDDING_DEVIATION = 1.0


class _Synthesizer:
    """Random values for each tensor of a checkpoint, one piece at a time."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._packed = PackedTensors(config)
        self._random = RandomWeights(seed)

    def produce(self, entry: TensorEntry) -> Iterator[torch.Tensor]:
        name, _, format_name = entry.name.rpartition(".")
        if entry.dtype != torch.uint8:
            yield from self._plain(
                entry, _EMBEDDING_DEVIATION if name == "embed_tokens" else WEIGHT_DEVIATION
            )
        elif len(entry.shape) == 2:
            layout = self._packed.layout_of(entry.name)
            assert isinstance(layout, PageLayout), entry.name
            for _ in range(entry.shape[0]):
                yield self._random.page(layout)
        else:
            rows, columns = self._packed.matrix_shape(name)
            deviation = _EMBEDDING_DEVIATION if name == "embed_tokens" else WEIGHT_DEVIATION
            yield from self._random.matrix(known_format(format_name), rows, columns, deviation)

    def _plain(self, entry: TensorEntry, deviation: float) -> Iterator[torch.Tensor]:
        if "norm" in entry.name and entry.name.endswith(".weight"):
            yield torch.ones(entry.shape, dtype=entry.dtype)
        elif entry.name.endswith(".bias"):
            yield torch.zeros(entry.shape, dtype=entry.dtype)
        else:
            for start in range(0, entry.shape[0], _ROWS_A_PIECE):
                rows = min(_ROWS_A_PIECE, entry.shape[0] - start)
                values = self._random.normal(rows, *entry.shape[1:])
                yield values.mul_(deviation / WEIGHT_DEVIATION).to(entry.dtype)


def write_random(
    directory: Path, raw: Mapping[str, object], tables: QuantizationConfig | None, seed: int
) -> None:
    """The checkpoint that `raw`, a config.json, describes, in the formats of `tables`, into a new place."""
    config = dataclasses.replace(parse_config(raw, "config.json"), quantization=tables)
    packed, expected = PackedTensors(config), ExpectedShapes(config)
    entries = [TensorEntry(name, torch.uint8, shape) for name, shape in packed.shapes.items()]
    for name in expected.names():
        if not packed.replaces(name):
            shape = expected.shape(name)
            assert shape is not None
            entries.append(TensorEntry(name, torch.float32 if "router" in name else torch.bfloat16, shape))
    directory.mkdir(parents=True)
    write_checkpoint(directory, entries, _Synthesizer(config, seed).produce)
    if tables is not None:
        raw = {**raw, "quantization_config": tables.to_json()}
    (directory / "config.json").write_text(json.dumps(raw, indent=1))
