"""Writes packed checkpoints without calibration, for tests: every weight rounded to nearest."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ernie_local.checkpoint.files import write_hashes
from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import QKV, PackedTensors, expert_pages, known_format, page_formats
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.checkpoint.writer import TensorEntry, write_checkpoint
from ernie_local.config import QuantizationConfig, read_config
from ernie_local.packing import ExpertPage, pack_matrix, pack_page
from ernie_local.packing.rounding import round_to_nearest
from ernie_local.verify import verify


def export_plainly(source: Path, out: Path, tables: QuantizationConfig) -> None:
    """Round the float checkpoint `source` into `out` in the formats of `tables`, which are all ours."""
    config = read_config(source)
    packed = PackedTensors(dataclasses.replace(config, quantization=tables))
    out.mkdir(exist_ok=True)
    with open_checkpoint(source, config) as checkpoint:
        entries = [
            TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name))
            for name in checkpoint.names()
            if not packed.replaces(name)
        ]
        entries += [TensorEntry(name, torch.uint8, shape) for name, shape in packed.shapes.items()]
        write_checkpoint(out, entries, lambda entry: _values(entry, checkpoint, tables))
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"] = tables.to_json()
    (out / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    for path in source.iterdir():
        if path.name != "config.json" and not path.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copy(path, out / path.name)
    write_hashes(out, verify(out).hashes)


def _values(entry: TensorEntry, checkpoint: Checkpoint, tables: QuantizationConfig) -> Iterator[torch.Tensor]:
    stem, _, format_name = entry.name.rpartition(".")
    pages = expert_pages(entry.name)
    if entry.dtype != torch.uint8:
        yield _read(checkpoint, entry.name, entry.dtype)
    elif pages is not None:
        table = tables.small_experts if pages.small else tables.experts
        for expert_id, expert_format in enumerate(table[pages.layer_id, pages.bank]):
            if expert_format == format_name:
                prefix = f"experts.{pages.layer_id}.{pages.bank}.{expert_id}"
                yield _page([_read(checkpoint, f"{prefix}.{name}") for name in PROJECTIONS], format_name)
    elif stem in tables.gated_mlps:
        yield _page([_read(checkpoint, f"{stem}.{name}.weight") for name in PROJECTIONS], format_name)
    else:
        parent, _, own = stem.rpartition(".")
        names = [f"{parent}.{part}_proj" for part in "qkv"] if own == QKV else [stem]
        if stem == "lm_head" and "lm_head.weight" not in checkpoint:  # tied
            names = ["embed_tokens"]
        weights = torch.cat([_read(checkpoint, f"{name}.weight") for name in names])
        yield pack_matrix(round_to_nearest(weights, known_format(format_name)))


def _page(matrices: list[torch.Tensor], page_format: str) -> torch.Tensor:
    gate_up, down = page_formats(page_format)
    formats = (gate_up, gate_up, down)
    return pack_page(ExpertPage(*map(round_to_nearest, matrices, formats)))


def _read(checkpoint: Checkpoint, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.empty(checkpoint.shape(name), dtype=dtype)
    checkpoint.read(name, values)
    return values
