"""A matrix of float32 rows that lies in a file: hidden states of calibration tokens, however many there are.

Only the rows that are asked for are in memory, and they are read, not mapped: mapped pages would count as the
process's own. Knows nothing of what the rows are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

Tensor = torch.Tensor
_ITEM_BYTES = torch.float32.itemsize


class RowFile:
    """(num_rows, width) float32 in `path`; what was never written is zero."""

    def __init__(self, path: Path, num_rows: int, width: int, *, is_new: bool = False) -> None:
        """Open the file, which must be there in that size unless `is_new`: then it is made, all zero."""
        self.path, self.num_rows, self.width = path, num_rows, width
        self._row_bytes = width * _ITEM_BYTES
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if is_new else 0)
        self._descriptor = os.open(path, flags, 0o644)
        if is_new:
            os.ftruncate(self._descriptor, num_rows * self._row_bytes)
        size = os.fstat(self._descriptor).st_size
        assert size == num_rows * self._row_bytes, (path, size, num_rows, width)

    def read(self, rows: slice | Tensor) -> Tensor:
        """Those rows, (rows, width); a tensor of ids is read fastest in ascending order."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.num_rows)
            runs, count = [(start, stop)], stop - start
        else:
            runs, count = list(_runs(rows)), rows.numel()
        values = torch.empty(count, self.width)
        view = _bytes_of(values)
        done = 0
        for start, stop in runs:
            num_bytes = (stop - start) * self._row_bytes
            _transfer(os.preadv, self._descriptor, view[done : done + num_bytes], start * self._row_bytes)
            done += num_bytes
        return values

    def write(self, rows: slice | Tensor, values: Tensor) -> None:
        """Put (rows, width) float32 there."""
        runs = [rows.indices(self.num_rows)[:2]] if isinstance(rows, slice) else list(_runs(rows))
        view = _bytes_of(values.contiguous())
        done = 0
        for start, stop in runs:
            num_bytes = (stop - start) * self._row_bytes
            _transfer(os.pwritev, self._descriptor, view[done : done + num_bytes], start * self._row_bytes)
            done += num_bytes
        assert done == len(view), (done, len(view))

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add (rows, width) to rows that differ from each other."""
        self.write(rows, self.read(rows).add_(values))

    def sync(self) -> None:
        """Have everything that was written on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bytes_of(values: Tensor) -> memoryview:
    view: memoryview = values.view(-1).view(torch.uint8).numpy().data
    return view


def _runs(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Bounds of the stretches of neighbouring ids, in the order of `rows`."""
    if not rows.numel():
        return
    breaks = (rows.diff() != 1).nonzero()[:, 0] + 1
    bounds = [0, *breaks.tolist(), rows.numel()]
    firsts = rows[torch.tensor(bounds[:-1])].tolist()
    for first, start, stop in zip(firsts, bounds[:-1], bounds[1:], strict=True):
        yield first, first + stop - start


def _transfer(
    call: Callable[[int, list[memoryview], int], int], descriptor: int, view: memoryview, offset: int
) -> None:
    while view:
        count = call(descriptor, [view], offset)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset}, {len(view)} more were wanted")
        view, offset = view[count:], offset + count
