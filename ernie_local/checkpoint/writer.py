"""Writes a checkpoint in our own format, piece by piece.

All places are known before any value is, so values may come in any order, and work on a file that was cut
off can be resumed.
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
from ernie_local.checkpoint.header import ITEM_BYTES, LARGEST_SHARD, cut_into_shards, file_header

_CODES = {torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def code(self) -> str:
        """Its type as safetensors files call it."""
        return _CODES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.code]


Producer = Callable[[TensorEntry], Iterable[torch.Tensor]]


class CheckpointFiles:
    """The files of a checkpoint in `directory`: one, or shards of at most `largest_shard` and an index.

    A tensor larger than a shard gets one of its own. The same entries give the same files.
    """

    def __init__(
        self, directory: Path, entries: Sequence[TensorEntry], largest_shard: int = LARGEST_SHARD
    ) -> None:
        self.directory = directory
        self._shards = cut_into_shards(entries, largest_shard)
        count = len(self._shards)
        names = [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
        self._names = [SINGLE_FILE] if count == 1 else names
        self._changed: set[Path] = set()
        self._headers = [file_header(shard) for shard in self._shards]
        self._places: dict[str, tuple[Path, int, TensorEntry]] = {}
        for name, header, shard in zip(self._names, self._headers, self._shards, strict=True):
            offset = len(header)
            for entry in shard:
                self._places[entry.name] = (directory / name, offset, entry)
                offset += entry.num_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all weight files, exactly; the index of several is not counted."""
        return sum(map(len, self._headers)) + sum(place[2].num_bytes for place in self._places.values())

    def in_file_order(self) -> list[TensorEntry]:
        """The entries as they lie in the files."""
        return [entry for shard in self._shards for entry in shard]

    def create(self) -> None:
        """Write headers and index; every file has its full length at once, so a full disk shows early."""
        for name, header, shard in zip(self._names, self._headers, self._shards, strict=True):
            with (self.directory / name).open("wb") as file:
                file.write(header)
                file.flush()
                num_bytes = len(header) + sum(entry.num_bytes for entry in shard)
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            self._changed.add(self.directory / name)
        if len(self._names) > 1:
            index = {
                "metadata": {"total_size": sum(place[2].num_bytes for place in self._places.values())},
                "weight_map": {name: place[0].name for name, place in self._places.items()},
            }
            (self.directory / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")

    def write(self, name: str, pieces: Iterable[torch.Tensor], row: int | None = None) -> None:
        """The values of a tensor, or of one row of it, in pieces of its dtype, one after the other."""
        path, offset, entry = self._places[name]
        expected = entry.num_bytes if row is None else entry.num_bytes // entry.shape[0]
        with path.open("r+b") as file:
            self._changed.add(path)
            file.seek(offset + (row or 0) * expected)
            written = 0
            for piece in pieces:
                assert piece.dtype == entry.dtype, (entry, piece.dtype)
                written += file.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
        assert written == expected, (entry, written)

    def read(self, name: str, row: int | None = None) -> torch.Tensor:
        """A uint8 tensor that was written before, or one row of it, (bytes,)."""
        path, offset, entry = self._places[name]
        assert entry.dtype == torch.uint8, entry
        row_bytes = entry.num_bytes if row is None else entry.num_bytes // entry.shape[0]
        with path.open("rb") as file:
            file.seek(offset + (row or 0) * row_bytes)
            return torch.frombuffer(bytearray(file.read(row_bytes)), dtype=torch.uint8)

    def sync(self) -> None:
        """Flush everything that was written to the disk."""
        while self._changed:
            path = self._changed.pop()
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_checkpoint(
    directory: Path, entries: Sequence[TensorEntry], produce: Producer, largest_shard: int = LARGEST_SHARD
) -> None:
    """Write all of `entries` into `directory`.

    `produce` is asked for each tensor once, in the order of the files, and yields its values in pieces of its
    dtype, one after the other.
    """
    files = CheckpointFiles(directory, entries, largest_shard)
    files.create()
    for entry in files.in_file_order():
        files.write(entry.name, produce(entry))
    files.sync()
