"""Streams values of a checkpoint into memory that the caller has allocated, and refuses unusable ones.

The headers were checked before (`header`, `files`, `index`). No size in a file decides how much is allocated.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from ernie_local.checkpoint.compressed import CompressedSource
from ernie_local.checkpoint.dequantize import Block, check_dequantizer, dequantized_blocks
from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.index import Accounts, TensorSource, account
from ernie_local.checkpoint.uncached_file import DOWNLOAD_AGAIN, drop_cached
from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.files import open_descriptor
from ernie_local.packing.formats import LARGEST_WEIGHT

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Large enough for full speed, small enough to be in the cache when it is checked for NaN, and for a copy in
# each thread that reads.
_CHUNK_BYTES = 256 << 10


def open_checkpoint(directory: Path, config: ModelConfig) -> Checkpoint:
    """The checkpoint in `directory`, whose headers agree with `config`. No values are read yet.

    ModelUnusable for a tensor that is missing, damaged, there twice or not of the model. DoesNotFit where a
    library is not installed that dequantizes weights of another tool.
    """
    accounts = account(directory, read_stored_tensors(directory), config)
    if accounts.num_compressed:
        check_dequantizer(directory, accounts.num_compressed)
    return Checkpoint(accounts)


class Checkpoint:
    """The tensors of a model under our names. Threads may read different tensors at the same time.

    accounts: where every tensor lies. packed: the packed tensors by name. open_file: gives a descriptor of a
    file, and may wait until the file is there.
    """

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.open_file: Callable[[Path], int] = open_descriptor
        self.packed: Mapping[str, StoredTensor] = accounts.packed
        self.on_read: Callable[[int], None] = _tell_nobody  # gets the number of bytes of every read
        self._files: dict[Path, int] = {}
        self._opening = threading.Lock()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors of the model, as stored."""
        plain = sum(source.num_bytes for source in self.accounts.sources.values())
        return plain + sum(tensor.num_bytes for tensor in self.packed.values())

    def names(self) -> list[str]:
        """Our names of all tensors that are not packed."""
        return list(self.accounts.sources)

    def __contains__(self, name: str) -> bool:
        """Whether `name`, ours, is a tensor that is not packed."""
        return name in self.accounts.sources

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of our tensor `name`; linear weights are (out, in)."""
        return self.accounts.sources[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Type as stored, or as dequantized: float32, float16 or bfloat16."""
        return DTYPES[self.accounts.sources[name].dtype]

    def is_compressed(self, name: str) -> bool:
        """Whether our tensor `name` is stored as another tool quantized it: no bytes of it can be used."""
        return isinstance(self.accounts.sources[name], CompressedSource)

    def place(self, name: str) -> tuple[Path, int, int]:
        """File, first byte and number of bytes of our tensor `name`, which must be there as it is."""
        source = self._plain(name)
        assert not source.transposed, name
        return source.stored.path, source.offset, source.num_bytes

    def check_values(self, name: str, stored: torch.Tensor) -> None:
        """Raise ModelUnusable if `stored`, the bytes of our tensor `name`, hold NaN or infinity."""
        source = self._plain(name)
        check_usable(source.stored, 0, stored.view(DTYPES[source.stored.dtype]))

    def read(self, name: str, out: torch.Tensor) -> None:
        """Fill `out`, a floating-point CPU tensor of `shape(name)`, converting to its dtype.

        Takes at most 1 MiB of memory, or some 16 MiB to dequantize. ModelUnusable if the file is cut short or
        holds NaN or infinity.
        """
        source = self.accounts.sources[name]
        assert out.device.type == "cpu", (name, out.device)
        assert out.is_floating_point(), (name, out.dtype)
        assert tuple(out.shape) == source.shape, (name, tuple(out.shape), source.shape)
        target = out.detach()
        if isinstance(source, CompressedSource):
            self._dequantize(source, 0, target)
            return
        self._read_elements(name, 0, target.t() if source.transposed else target)

    def check(self, name: str) -> None:
        """Read our tensor `name` as `read` does, for its errors alone."""
        source = self.accounts.sources[name]
        if isinstance(source, CompressedSource):
            for _ in self._blocks(source, 0, source.shape[0]):
                pass
            return
        piece = torch.empty(_CHUNK_BYTES // 4, dtype=DTYPES[source.stored.dtype])
        count = math.prod(source.shape)
        for first in range(0, count, len(piece)):
            self._read_elements(name, first, piece[: count - first])

    def read_rows(self, name: str, first_row: int, out: torch.Tensor) -> None:
        """As `read`, but rows from `first_row` on, as many as `out` has, which must be contiguous."""
        source = self.accounts.sources[name]
        assert out.is_contiguous(), name
        assert tuple(out.shape[1:]) == source.shape[1:], (name, tuple(out.shape), source.shape)
        assert first_row + out.shape[0] <= source.shape[0], (name, first_row, tuple(out.shape))
        if isinstance(source, CompressedSource):
            self._dequantize(source, first_row, out)
            return
        assert not source.transposed, name
        self._read_elements(name, first_row * math.prod(source.shape[1:]), out)

    def read_packed(self, name: str, out: torch.Tensor, row: int | None = None) -> None:
        """Fill `out`, contiguous uint8 on the CPU, with the packed tensor `name`, or one row of it.

        The content of the bytes is not checked. ModelUnusable if the file is cut short.
        """
        stored = self.packed[name]
        row_bytes = stored.num_bytes if row is None else stored.num_bytes // stored.shape[0]
        assert out.dtype == torch.uint8, (name, out.dtype)
        assert out.numel() == row_bytes, (name, out.numel(), row_bytes)
        self._read_bytes(stored, stored.offset + (row or 0) * row_bytes, out)

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def drop_cached(self) -> None:
        """Let the system forget what it keeps of the files that were read."""
        for descriptor in self._files.values():
            drop_cached(descriptor, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plain(self, name: str) -> TensorSource:
        source = self.accounts.sources[name]
        assert isinstance(source, TensorSource), name
        return source

    def _dequantize(self, source: CompressedSource, first_row: int, out: torch.Tensor) -> None:
        for rows, columns, values in self._blocks(source, first_row, len(out)):
            out[rows.start - first_row : rows.stop - first_row, columns].copy_(values)

    def _blocks(self, source: CompressedSource, first_row: int, num_rows: int) -> Iterator[Block]:
        for rows, columns, values in dequantized_blocks(source, first_row, num_rows, self._read_bytes):
            check_usable(source.stored, rows.start * source.shape[1] + columns.start, values)
            yield rows, columns, values

    def _read_elements(self, name: str, first: int, target: torch.Tensor) -> None:
        """Fill `target` with elements from `first` on, in the file's order.

        A tied head that the files hold too must be equal to the embedding.
        """
        source = self._plain(name)
        head = self.accounts.tied_head if name == "embed_tokens.weight" else None
        for piece, piece_start in _pieces(target):
            start = first + piece_start
            self._fill(source, start, piece)
            if head is None:
                continue
            again = torch.empty_like(piece)
            self._fill(replace(source, stored=head, offset=head.offset), start, again)
            if not torch.equal(piece, again):
                raise ModelUnusable(
                    f"{head} differs from the embedding within elements {start} to {start + piece.numel()}",
                    "config.json has tie_word_embeddings true, which says that both are the same",
                    "set tie_word_embeddings to false in config.json if the head was trained on its own",
                )

    def _fill(self, source: TensorSource, start: int, piece: torch.Tensor) -> None:
        """Fill `piece` with elements of `source` from `start` on, in the file's order."""
        stored_dtype = DTYPES[source.stored.dtype]
        offset = source.offset + start * stored_dtype.itemsize
        if piece.dtype == stored_dtype and piece.is_contiguous():
            self._read_bytes(source.stored, offset, piece)
        else:
            staging = torch.empty(piece.shape, dtype=stored_dtype)
            self._read_bytes(source.stored, offset, staging)
            piece.copy_(staging)
        check_usable(source.stored, start, piece)

    def _descriptor(self, path: Path) -> int:
        with self._opening:
            if path not in self._files:
                self._files[path] = self.open_file(path)
            return self._files[path]

    def _read_bytes(self, stored: StoredTensor, offset: int, into: torch.Tensor) -> None:
        # As bytes, because numpy knows no bfloat16; no copy is made.
        view = into.view(-1).view(torch.uint8).numpy().data
        try:
            descriptor = self._descriptor(stored.path)
            while view:
                count = os.preadv(descriptor, [view], offset)
                if count == 0:
                    raise ModelUnusable(
                        f"{stored} should reach byte {stored.offset + stored.num_bytes}, "
                        f"the file ends at byte {os.fstat(descriptor).st_size}",
                        "the file became shorter while it was read",
                        DOWNLOAD_AGAIN,
                    )
                view, offset = view[count:], offset + count
                self.on_read(count)
        except OSError as error:
            raise ModelUnusable(
                f"{stored} cannot be read at byte {offset}",
                error.strerror or str(error),
                "check the disk and its cable or network",
            ) from error


def _tell_nobody(_num_bytes: int) -> None:
    """The default of `on_read`."""


def _pieces(target: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
    """Parts of `target` of about 256 KiB at most, each with the number of elements before it."""
    if target.is_contiguous():
        target = target.view(-1)
    row_size = max(target[0].numel(), 1) if target.dim() > 1 else 1
    rows = max(_CHUNK_BYTES // (row_size * 4), 1)
    for row in range(0, len(target), rows):
        yield target[row : row + rows], row * row_size


def check_usable(stored: StoredTensor, start: int, piece: torch.Tensor) -> None:
    """Raise ModelUnusable for NaN, infinity, or a weight so large that what is computed from it overflows.

    piece: elements of a tensor from `start` on.
    """
    # Smallest and largest are NaN if any element is; this is twenty times faster than asking each element.
    smallest, largest = map(float, torch.aminmax(piece))
    if smallest >= -LARGEST_WEIGHT and largest <= LARGEST_WEIGHT:
        return
    bad = (~(piece.float().abs() <= LARGEST_WEIGHT)).flatten().nonzero().flatten()
    position = int(bad[0])
    value = float(piece.flatten()[position])
    raise ModelUnusable(
        f"{stored} holds {value:.6g} at element "
        f"{start + position} of its part of the model, the first of {len(bad)} there",
        f"weights over {LARGEST_WEIGHT:.0f} overflow when the model computes, in float32 too"
        if math.isfinite(value)
        else "a weight that is not a finite number makes every answer useless",
        DOWNLOAD_AGAIN,
    )
