"""Reads one weight file from its first byte to its last, hashes it, and checks its values on the way.

Whether its tensors are those of the model is checked elsewhere, by `account` in checkpoint/index.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path

import torch

from ernie_local.checkpoint.compressed import is_compressed_part
from ernie_local.checkpoint.files import FileHash
from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.names import is_left_out
from ernie_local.checkpoint.packed import PackedTensors, known_format
from ernie_local.checkpoint.reader import DTYPES, check_usable
from ernie_local.errors import ModelUnusable
from ernie_local.packing.page import check_page, check_scales
from ernie_local.verify.finding import Findings

PIECE_BYTES = 4 << 20
OnBytes = Callable[[str, int], None]  # gets the file's name, and how many more bytes of it were read


class FileStream:
    """Reads an open file once, in pieces."""

    def __init__(self, file: BufferedReader, on_bytes: OnBytes) -> None:
        self._file, self._path, self._on_bytes = file, Path(file.name), on_bytes
        self._digest = hashlib.sha256()
        self._buffer = bytearray(PIECE_BYTES)  # grows for a larger page, or larger tiles
        self.position = 0

    def pieces(self, num_bytes: int, multiple: int = 1) -> Iterator[torch.Tensor]:
        """The next `num_bytes` as (bytes,) uint8 tensors, each but the last a multiple of `multiple` long.

        The next piece overwrites this one. ModelUnusable if the file ends early.
        """
        most = max(PIECE_BYTES // multiple, 1) * multiple
        end = self.position + num_bytes
        while self.position < end:
            yield self._read(min(most, end - self.position))

    def skip_to(self, position: int) -> None:
        """Read up to `position`, for the hash alone."""
        for _ in self.pieces(position - self.position):
            pass

    def finish(self) -> FileHash:
        """Read the rest, and return the hash of the whole file."""
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
        self._on_bytes(self._path.name, len(chunk))


def check_values(
    stream: FileStream, tensors: list[StoredTensor], packed: PackedTensors, findings: Findings
) -> int:
    """Check the values of all tensors of a file, and return the number of pages among them.

    Plain tensors must be finite. Pages must match their checksums, and the scales of packed matrices must be
    numbers. Of each plain tensor, matrix and page only the first fault is kept.
    """
    num_pages = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        stream.skip_to(tensor.offset)
        if is_left_out(tensor.name) or is_compressed_part(tensor.name):
            continue  # parts of a matrix are checked together, by `Checkpoint.check`
        file_name, name = tensor.path.name, tensor.name
        if packed.shapes.get(name) == tensor.shape and tensor.dtype == "U8":
            layout = packed.layout_of(name)
            if layout is None:
                findings.attempt(partial(_check_matrix, stream, tensor, packed), file_name, name)
                continue
            for page in range(tensor.shape[0]):
                (whole,) = stream.pieces(layout.page_bytes, layout.page_bytes)
                where = f"{tensor.path}: page {page} of {name}"
                findings.attempt(partial(check_page, whole, layout, where), file_name, name, page)
            num_pages += tensor.shape[0]
        elif tensor.dtype in DTYPES:
            findings.attempt(partial(_check_plain, stream, tensor), file_name, name)
    return num_pages


def _check_plain(stream: FileStream, tensor: StoredTensor) -> None:
    dtype = DTYPES[tensor.dtype]
    start = 0
    for piece in stream.pieces(tensor.num_bytes, dtype.itemsize):
        values = piece.view(dtype)
        check_usable(tensor, start, values)
        start += values.numel()


def _check_matrix(stream: FileStream, tensor: StoredTensor, packed: PackedTensors) -> None:
    name, _, format_name = tensor.name.rpartition(".")
    low_bit = known_format(format_name)
    _, columns = packed.matrix_shape(name)
    for piece in stream.pieces(tensor.num_bytes, low_bit.tile_bytes(columns)):
        check_scales(piece, low_bit, columns, f"{tensor.path}: {tensor.name}")
