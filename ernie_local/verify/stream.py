"""One file read from its first byte to its last, hashed on the way, in pieces of a few MiB.

Owns the buffer. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from ernie_local.checkpoint.files import FileHash
from ernie_local.errors import ModelUnusable

PIECE_BYTES = 4 << 20
OnBytes = Callable[[str, int], None]  # the file's name, and how many more bytes of it were read


class FileStream:
    """Use as a context; `hash` once everything was read."""

    def __init__(self, path: Path, on_bytes: OnBytes | None) -> None:
        self._path, self._on_bytes = path, on_bytes
        self._digest = hashlib.sha256()
        self._buffer = bytearray(PIECE_BYTES)  # grows where one tile or page is larger
        self.position = 0

    def pieces(self, num_bytes: int, multiple: int = 1) -> Iterator[torch.Tensor]:
        """The next bytes, (bytes,) uint8 each, whose numbers but the last are divided by `multiple`.

        A piece is overwritten by the next. ModelUnusable where the file ends before.
        """
        most = max(PIECE_BYTES // multiple, 1) * multiple
        end = self.position + num_bytes
        while self.position < end:
            yield self._read(min(most, end - self.position))

    def skip_to(self, position: int) -> None:
        """Read up to there for the hash alone."""
        for _ in self.pieces(position - self.position):
            pass

    def finish(self) -> FileHash:
        """Read what is left; the hash of the whole file."""
        view = memoryview(self._buffer)
        while count := self._file.readinto(view):
            self._note(view[:count])
        return FileHash(self.position, self._digest.hexdigest())

    def _read(self, num_bytes: int) -> torch.Tensor:
        if len(self._buffer) < num_bytes:
            self._buffer = bytearray(num_bytes)
        view = memoryview(self._buffer)[:num_bytes]
        count = self._file.readinto(view)
        self._note(view[:count])
        if count < num_bytes:
            raise ModelUnusable(
                f"{self._path} ends at byte {self.position}, {num_bytes - count} more were there before",
                "the file became shorter while it was read",
                "run this again when nothing writes to it",
            )
        return torch.frombuffer(self._buffer, dtype=torch.uint8, count=num_bytes)

    def _note(self, chunk: memoryview) -> None:
        self._digest.update(chunk)
        self.position += len(chunk)
        if self._on_bytes is not None:
            self._on_bytes(self._path.name, len(chunk))

    def __enter__(self) -> Self:
        self._file = self._path.open("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
