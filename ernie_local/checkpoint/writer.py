"""Writes a checkpoint in our own format, piece by piece.

The place of every tensor is known beforehand, so values may come in any order, and a stopped run can go on.
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
from ernie_local.errors import ModelUnusable, parameter
from ernie_local.files import replaced, sync_file, sync_names

_CODES = {
    torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip


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
        """Size in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.code]


class CheckpointFiles:
    """The files of a checkpoint in `directory`: one, or shards of at most `largest_shard` bytes and an index.

    A larger tensor gets a shard of its own. The same entries give the same files.
    """

    def __init__(
        self, directory: Path, entries: Sequence[TensorEntry], largest_shard: int = LARGEST_SHARD
    ) -> None:
        self.directory = directory
        self._shards = cut_into_shards(entries, largest_shard)
        count = len(self._shards)
        names = [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
        self._paths = [directory / name for name in ([SINGLE_FILE] if count == 1 else names)]
        self._changed: set[Path] = set()
        self._headers = [file_header(shard) for shard in self._shards]
        self._places: dict[str, tuple[Path, int, TensorEntry]] = {}
        for path, header, shard in zip(self._paths, self._headers, self._shards, strict=True):
            offset = len(header)
            for entry in shard:
                self._places[entry.name] = (path, offset, entry)
                offset += entry.num_bytes

    @property
    def total_bytes(self) -> int:
        """Exact bytes of all weight files, without the index of several files."""
        return sum(map(len, self._headers)) + sum(entry.num_bytes for entry in self.in_file_order())

    def in_file_order(self) -> list[TensorEntry]:
        """The entries as they lie in the files."""
        return [entry for shard in self._shards for entry in shard]

    def create(self) -> None:
        """Write headers and index, and give every file its full length, so that a full disk shows at once."""
        for path, header, shard in zip(self._paths, self._headers, self._shards, strict=True):
            with path.open("wb") as file:
                file.write(header)
                file.flush()
                num_bytes = len(header) + sum(entry.num_bytes for entry in shard)
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            self._changed.add(path)
        if len(self._paths) > 1:
            index = {
                "metadata": {"total_size": sum(entry.num_bytes for entry in self.in_file_order())},
                "weight_map": {name: place[0].name for name, place in self._places.items()},
            }
            with replaced(self.directory / INDEX_FILE) as new:
                new.write_text(json.dumps(index, indent=1), encoding="utf-8")
        sync_names(self.directory)

    def check(self) -> None:
        """ModelUnusable unless every file is there as `create` made it: its header, its length."""
        for path, header, shard in zip(self._paths, self._headers, self._shards, strict=True):
            num_bytes = len(header) + sum(entry.num_bytes for entry in shard)
            try:
                found = path.stat().st_size
                with path.open("rb") as file:
                    begins_right = file.read(len(header)) == header
            except OSError as error:
                raise _damaged(path, error.strerror or str(error), f"it had {num_bytes} bytes") from error
            if found != num_bytes or not begins_right:
                raise _damaged(path, f"{found} bytes", f"it had {num_bytes}, with a header of {len(header)}")

    def write(self, name: str, pieces: Iterable[torch.Tensor], row: int | None = None) -> None:
        """Write a tensor, or one row of it, from pieces of its dtype that follow each other."""
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
        """A tensor that was written before, or one row of it, flat."""
        path, offset, entry = self._places[name]
        row_bytes = entry.num_bytes if row is None else entry.num_bytes // entry.shape[0]
        with path.open("rb") as file:
            file.seek(offset + (row or 0) * row_bytes)
            return torch.frombuffer(bytearray(file.read(row_bytes)), dtype=entry.dtype)

    def sync(self) -> None:
        """Flush everything that was written to the disk."""
        while self._changed:
            sync_file(self._changed.pop())


def _damaged(path: Path, found: str, expected: str) -> ModelUnusable:
    return ModelUnusable(
        f"the weights in {path} are not those of the work that was begun: {found}",
        expected,
        f"start again with {parameter('resume', 'never')}",
    )


def write_checkpoint(
    directory: Path,
    entries: Sequence[TensorEntry],
    produce: Callable[[TensorEntry], Iterable[torch.Tensor]],
    largest_shard: int = LARGEST_SHARD,
) -> None:
    """Write all of `entries` into `directory`.

    `produce` is called once for each, in the order of the files, and yields its values as for `write`.
    """
    files = CheckpointFiles(directory, entries, largest_shard)
    files.create()
    for entry in files.in_file_order():
        files.write(entry.name, produce(entry))
    files.sync()
