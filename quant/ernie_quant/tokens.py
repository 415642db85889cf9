"""Holds the calibration tokens of all sequences: positions, and hidden states in a file.

Hidden states are read from the file row by row; mapped pages would count as memory of the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.loading.build import build_embedder
from ernie_local.media.patches import Patches
from ernie_local.media.tokens import MediaPrompt


class TokenSequence(Protocol):
    """Ids with expanded placeholders, and their images."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """(tokens,)."""
        ...

    @property
    def patches(self) -> tuple[Patches, ...]:
        """In the order of the placeholders."""
        ...


@dataclass(frozen=True, slots=True)
class TokenTable:
    """positions: (3, tokens) int64; is_vision: (tokens,) bool; bounds: the first token of each sequence, then
    the number of all tokens."""

    positions: torch.Tensor
    is_vision: torch.Tensor
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], config: ModelConfig) -> TokenTable:
        """UsageError for an empty list."""
        if not sequences:
            raise UsageError(
                "0 calibration sequences, at least 1 is needed",
                "second moments are taken from tokens that run through the model",
                f"give samples, or use {parameter('method', 'rtn')}, which needs none",
            )
        prompts = [MediaPrompt.of(sequence.token_ids, sequence.patches, config) for sequence in sequences]
        bounds = [0]
        for sequence in sequences:
            bounds.append(bounds[-1] + len(sequence.token_ids))
        return cls(
            torch.cat([prompt.positions for prompt in prompts], dim=1),
            torch.cat([prompt.is_vision for prompt in prompts]),
            tuple(bounds),
        )

    def repeated(self, times: int) -> TokenTable:
        """The same sequences, repeated `times` times."""
        bounds = [0]
        for number in range(times):
            bounds.extend(number * self.num_tokens + bound for bound in self.bounds[1:])
        return TokenTable(self.positions.repeat(1, times), self.is_vision.repeat(times), tuple(bounds))

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return self.bounds[-1]

    def sequences(self) -> Iterator[slice]:
        """The tokens of each sequence."""
        return (slice(start, stop) for start, stop in pairwise(self.bounds))


@torch.inference_mode()
def embed(
    checkpoint: Checkpoint,
    config: ModelConfig,
    sequences: Sequence[TokenSequence],
    table: TokenTable,
    states: RowFile,
    first: int = 0,
) -> Iterator[int]:
    """Write the inputs of the first layer into `states`, by the embedding and tower of `checkpoint`.

    Starts at sequence `first`. Yields the number of tokens done after each sequence.
    """
    model = build_embedder(checkpoint, config)
    for sequence, tokens in list(zip(sequences, table.sequences(), strict=True))[first:]:
        prompt = MediaPrompt.of(sequence.token_ids, sequence.patches, config)
        embedded = model.embed(prompt.token_ids)
        if sequence.patches:
            embedded[prompt.is_placeholder] = torch.cat(model.encode_images(sequence.patches))
        states.write(tokens, embedded)
        yield tokens.stop


Tensor = torch.Tensor
_ITEM_BYTES = torch.float32.itemsize


class RowFile:
    """(num_rows, width) float32 in `path`; rows that were never written are zero."""

    def __init__(self, path: Path, num_rows: int, width: int, *, is_new: bool = False) -> None:
        """Open a file of that size; with `is_new`, create it, all zero."""
        self.path, self.num_rows, self.width = path, num_rows, width
        self._row_bytes = width * _ITEM_BYTES
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if is_new else 0)
        self._descriptor = os.open(path, flags, 0o644)
        if is_new:
            os.ftruncate(self._descriptor, num_rows * self._row_bytes)
        size = os.fstat(self._descriptor).st_size
        assert size == num_rows * self._row_bytes, (path, size, num_rows, width)

    def read(self, rows: slice | Tensor) -> Tensor:
        """These rows, (rows, width); a tensor of ids is read fastest in ascending order."""
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
        """Write (rows, width) float32 to these rows."""
        runs = [rows.indices(self.num_rows)[:2]] if isinstance(rows, slice) else list(_runs(rows))
        view = _bytes_of(values.contiguous())
        done = 0
        for start, stop in runs:
            num_bytes = (stop - start) * self._row_bytes
            _transfer(os.pwritev, self._descriptor, view[done : done + num_bytes], start * self._row_bytes)
            done += num_bytes
        assert done == len(view), (done, len(view))

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add (rows, width) to these rows, all of them different."""
        self.write(rows, self.read(rows).add_(values))

    def sync(self) -> None:
        """Sync everything to the disk."""
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
    """Bounds of the runs of consecutive ids, in the order of `rows`."""
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
            raise EOFError(f"the file ends at byte {offset}, {len(view)} more are needed")
        view, offset = view[count:], offset + count
