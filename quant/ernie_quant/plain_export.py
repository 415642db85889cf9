"""A checkpoint rounded to nearest into our own format: no calibration, one tensor in memory at a time.

The floor that calibrated checkpoints have to beat, and the quick way to a packed model. Knows names and
order of tensors; rounding is `rtn`'s, bytes are `packing`'s, files are the writer's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ernie_local.checkpoint.packed import QKV, PackedTensors, known_format
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.checkpoint.writer import TensorEntry, write_checkpoint
from ernie_local.config import QuantizationConfig, read_config
from ernie_local.errors import UsageError
from ernie_local.packing import ExpertPage, LowBitFormat, QuantizedMatrix, pack_matrix, pack_page
from ernie_quant.rtn import round_to_nearest

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


def export_plainly(source: Path, out: Path, tables: QuantizationConfig) -> None:
    """Round `source`, an unquantized checkpoint, into the new directory `out`, in the formats of `tables`.

    Files beside config and weights are copied. UsageError if `out` is not empty or `source` is quantized.
    """
    config = read_config(source)
    if config.quantization is not None:
        raise UsageError(
            f"{source} is quantized already",
            "rounding it again would add the errors of both",
            "start from the bfloat16 checkpoint",
        )
    if out.exists() and any(out.iterdir()):
        raise UsageError(
            f"{out} is there and holds {len(list(out.iterdir()))} entries",
            "nothing is overwritten",
            "name a new directory",
        )
    packed = PackedTensors(dataclasses.replace(config, quantization=tables))
    out.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(source, config) as checkpoint:
        plain = [
            TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name))
            for name in checkpoint.names()
            if not packed.replaces(name)
        ]
        entries = [TensorEntry(name, torch.uint8, shape) for name, shape in packed.shapes.items()]
        exporter = _Exporter(checkpoint, tables)
        write_checkpoint(out, [*plain, *entries], exporter.produce)
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"] = tables.to_json()
    (out / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    for path in source.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.endswith(_WEIGHT_SUFFIXES):
            shutil.copy(path, out / path.name)


class _Exporter:
    def __init__(self, checkpoint: Checkpoint, tables: QuantizationConfig) -> None:
        self._checkpoint = checkpoint
        self._tables = tables

    def produce(self, entry: TensorEntry) -> Iterator[torch.Tensor]:
        """The values of one tensor of the output, in pieces."""
        name, _, format_name = entry.name.rpartition(".")
        if entry.dtype != torch.uint8:
            values = torch.empty(entry.shape, dtype=entry.dtype)
            self._checkpoint.read(entry.name, values)
            yield values
        elif name.startswith("experts."):
            _, layer_id, bank = name.split(".")
            formats = self._tables.experts[int(layer_id), "text" if bank == "text" else "vision"]
            for expert_id, expert_format in enumerate(formats):
                if expert_format == format_name:
                    yield self._page(f"{name}.{expert_id}.", "", format_name)
        elif name in self._tables.gated_mlps:
            yield self._page(f"{name}.", ".weight", format_name)
        else:
            yield pack_matrix(round_to_nearest(self._matrix(name), known_format(format_name)))

    def _page(self, prefix: str, suffix: str, page_format: str) -> torch.Tensor:
        gate_up, _, down = page_format.partition("-")
        formats = (gate_up, gate_up, down or gate_up)
        gate, up, down_matrix = (
            self._rounded(f"{prefix}{projection}{suffix}", known_format(name))
            for projection, name in zip(PROJECTIONS, formats, strict=True)
        )
        return pack_page(ExpertPage(gate, up, down_matrix))

    def _rounded(self, name: str, low_bit: LowBitFormat) -> QuantizedMatrix:
        return round_to_nearest(self._read(name), low_bit)

    def _matrix(self, name: str) -> torch.Tensor:
        parent, _, own = name.rpartition(".")
        if own == QKV:
            return torch.cat([self._read(f"{parent}.{part}_proj.weight") for part in "qkv"])
        if name == "lm_head" and "lm_head.weight" not in self._checkpoint:
            return self._read("embed_tokens.weight")  # tied
        return self._read(f"{name}.weight")

    def _read(self, name: str) -> torch.Tensor:
        values = torch.empty(self._checkpoint.shape(name))
        self._checkpoint.read(name, values)
        return values
