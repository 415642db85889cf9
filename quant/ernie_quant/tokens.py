"""Holds the calibration tokens of all sequences: positions, and hidden states in a file.

Hidden states are read from the file row by row; mapped pages would count as memory of the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Self

import torch

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.loading.build import build_embedder
from ernie_local.media.tokens import MediaPrompt
from ernie_local.model.ernie import ErnieModel
from ernie_quant.work import damaged_work

Tensor = torch.Tensor
# What one process passes through a layer at once: experts are fastest with many tokens each. Few tokens are
# cut too, so that several processes have work.
_PART_TOKENS, _LEAST_PARTS = 8192, 8


@dataclass(frozen=True, slots=True)
class TokenTable:
    """positions: (3, tokens) int64; is_vision: (tokens,) bool; bounds: the first token of each sequence, then
    the number of all tokens."""

    positions: torch.Tensor
    is_vision: torch.Tensor
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[EncodedSample], config: ModelConfig) -> TokenTable:
        """UsageError for an empty list."""
        if not sequences:
            raise UsageError(
                "0 calibration sequences, at least 1 is needed",
                "second moments are taken from tokens that run through the model",
                f"give samples, or use {parameter('method', 'rtn')}, which needs none",
            )
        prompts = [MediaPrompt.of(sequence.token_ids, sequence.patches, config) for sequence in sequences]
        return cls(
            torch.cat([prompt.positions for prompt in prompts], dim=1),
            torch.cat([prompt.is_vision for prompt in prompts]),
            tuple(accumulate((len(sequence.token_ids) for sequence in sequences), initial=0)),
        )

    def repeated(self, times: int) -> TokenTable:
        """The same sequences, repeated `times` times."""
        later = [copy * self.num_tokens + bound for copy in range(times) for bound in self.bounds[1:]]
        return TokenTable(self.positions.repeat(1, times), self.is_vision.repeat(times), (0, *later))

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return self.bounds[-1]

    def sequences(self) -> Iterator[slice]:
        """The tokens of each sequence."""
        return (slice(start, stop) for start, stop in pairwise(self.bounds))


def cut_into_parts(sequences: Iterable[slice], num_tokens: int) -> list[list[slice]]:
    """The tokens of each sequence, of `num_tokens` together, in parts that different processes may take."""
    most = min(_PART_TOKENS, -(-num_tokens // _LEAST_PARTS))
    parts: list[list[slice]] = []
    room = 0
    for tokens in sequences:
        if room <= 0:
            parts.append([])
            room = most
        parts[-1].append(tokens)
        room -= tokens.stop - tokens.start
    return parts


def first_sequences(sequences: Sequence[EncodedSample], most_tokens: int) -> Sequence[EncodedSample]:
    """Of at most so many tokens together, but at least one."""
    ends = accumulate(len(sequence.token_ids) for sequence in sequences)
    return sequences[: max(1, sum(end <= most_tokens for end in ends))]


class Embedder:
    """Makes the inputs of the first layer, by the embedding and tower of `checkpoint`."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._checkpoint, self._config = checkpoint, config

    @cached_property
    def _model(self) -> ErnieModel:
        return build_embedder(self._checkpoint, self._config)

    @torch.inference_mode()
    def embed(self, sequence: EncodedSample) -> Tensor:
        """(tokens, hidden_size); the first call reads the weights."""
        prompt = MediaPrompt.of(sequence.token_ids, sequence.patches, self._config)
        embedded = self._model.embed(prompt.token_ids)
        if sequence.patches:
            embedded[prompt.is_placeholder] = torch.cat(self._model.encode_images(sequence.patches))
        return embedded


class RowFile:
    """(num_rows, width) float32 in `path`; rows that were never written are zero."""

    def __init__(
        self, path: Path, num_rows: int, width: int, *, is_new: bool = False, is_shared: bool = False
    ) -> None:
        """Open a file of that size, ModelUnusable if it is not there; with `is_new`, create it, all zero.

        is_shared: create it only where no other process has.
        """
        self.path, self.num_rows, self.width = path, num_rows, width
        self._row_bytes = width * torch.float32.itemsize
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if is_new else 0) | (os.O_CREAT if is_shared else 0)
        num_bytes = num_rows * self._row_bytes
        try:
            self._descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError as error:
            raise damaged_work(path, f"it is missing, and had {num_bytes} bytes") from error
        if is_new or is_shared:
            os.ftruncate(self._descriptor, num_bytes)
        size = os.fstat(self._descriptor).st_size
        if size != num_bytes:
            os.close(self._descriptor)
            raise damaged_work(path, f"it has {size} bytes, and had {num_bytes}")

    def read(self, rows: slice | Tensor) -> Tensor:
        """These rows, (rows, width); a tensor of ids is read fastest in ascending order."""
        count = len(range(self.num_rows)[rows]) if isinstance(rows, slice) else rows.numel()
        values = torch.empty(count, self.width)
        self._transfer(os.preadv, rows, values)
        return values

    def write(self, rows: slice | Tensor, values: Tensor) -> None:
        """Write (rows, width) float32 to these rows."""
        self._transfer(os.pwritev, rows, values.contiguous())

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

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _transfer(
        self, call: Callable[[int, list[memoryview], int], int], rows: slice | Tensor, values: Tensor
    ) -> None:
        """Use `call`, preadv or pwritev, on each run of consecutive rows until all of `values` passed."""
        view: memoryview = values.view(-1).view(torch.uint8).numpy().data
        runs = [rows.indices(self.num_rows)[:2]] if isinstance(rows, slice) else _runs(rows)
        for start, stop in runs:
            offset, end = start * self._row_bytes, stop * self._row_bytes
            while offset < end:
                count = call(self._descriptor, [view[: end - offset]], offset)
                if count == 0:
                    raise EOFError(f"the file ends at byte {offset}, {end - offset} more are needed")
                view, offset = view[count:], offset + count
        assert not view, (len(view), rows)


def _runs(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Bounds of the runs of consecutive ids, in the order of `rows`."""
    if not rows.numel():
        return
    breaks = (rows.diff() != 1).nonzero()[:, 0] + 1
    bounds = [0, *breaks.tolist(), rows.numel()]
    firsts = rows[torch.tensor(bounds[:-1])].tolist()
    for first, start, stop in zip(firsts, bounds[:-1], bounds[1:], strict=True):
        yield first, first + stop - start
