"""Writes a checkpoint in our own format, tensor by tensor, in memory for one piece of one tensor.

Owns the order in the files, the shards and their index. Pages come first in a shard, behind a header padded
to their alignment: each lies at a multiple of 4096, and any safetensors reader can still read the file. Knows
nothing of what the tensors are for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ernie_local.checkpoint.files import INDEX_FILE, SINGLE_FILE
from ernie_local.checkpoint.header import ITEM_BYTES
from ernie_local.packing import PAGE_ALIGNMENT
from ernie_local.sizes import GIB

LARGEST_SHARD = 4 * GIB
_CODES = {torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[_CODES[self.dtype]]


Producer = Callable[[TensorEntry], Iterable[torch.Tensor]]


def write_checkpoint(
    directory: Path, entries: Sequence[TensorEntry], produce: Producer, largest_shard: int = LARGEST_SHARD
) -> None:
    """Write all of `entries` into `directory`: one file, or shards of at most `largest_shard` and an index.

    `produce` is asked for each tensor once, in the order of the files, and yields its values in pieces of its
    dtype, one after the other. A tensor larger than a shard gets one of its own.
    """
    shards = _shards(entries, largest_shard)
    count = len(shards)
    names = [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    names = [SINGLE_FILE] if count == 1 else names
    for name, shard in zip(names, shards, strict=True):
        _write_shard(directory / name, shard, produce)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(entry.num_bytes for entry in entries)},
            "weight_map": {
                entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard
            },
        }
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _shards(entries: Sequence[TensorEntry], largest: int) -> list[list[TensorEntry]]:
    # By the alignment that their sizes keep: pages, packed matrices (64 bytes), wide numbers, narrow ones.
    order = sorted(entries, key=lambda entry: -_kept_alignment(entry))
    shards: list[list[TensorEntry]] = [[]]
    room = largest
    for entry in order:
        if entry.num_bytes > room and shards[-1]:
            shards.append([])
            room = largest
        shards[-1].append(entry)
        room -= entry.num_bytes
    return shards


def _kept_alignment(entry: TensorEntry) -> int:
    if entry.dtype == torch.uint8:
        return PAGE_ALIGNMENT if entry.num_bytes % PAGE_ALIGNMENT == 0 else 64
    return entry.dtype.itemsize


def _write_shard(path: Path, entries: Sequence[TensorEntry], produce: Producer) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.num_bytes],
        }
        offset += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // PAGE_ALIGNMENT) * PAGE_ALIGNMENT - 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            written = 0
            for piece in produce(entry):
                assert piece.dtype == entry.dtype, (entry, piece.dtype)
                written += file.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert written == entry.num_bytes, (entry, written)
        file.flush()
        os.fsync(file.fileno())
