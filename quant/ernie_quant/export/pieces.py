"""Pairs each tensor of the hub's layout with how it is stored, makes what is written, checks what was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.reader import DTYPES
from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.files import open_plain
from ernie_quant.export.compressed import CompressedMatrix, CompressMethod, GroupedFormat, compress
from ernie_quant.export.compressed_layout import CompressedLayout
from ernie_quant.export.hub_layout import HubTensor, hub_tensors
from ernie_quant.export.weights import SourceWeights
from ernie_quant.stages import layer_of

_STORED_DTYPES = DTYPES | {"I32": torch.int32, "I64": torch.int64}
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# The share of the weights' power that codes of so many bits may lose: far above what they do, and far below
# what the weights of another matrix would.
_MOST_LOST = {8: 0.01, 4: 0.25}
_OUTSIDE = "weights outside of the layers"


@dataclass(frozen=True, slots=True)
class ExportPiece:
    """A tensor of the hub's layout, and the format that it is compressed to; None for plain numbers."""

    tensor: HubTensor
    form: GroupedFormat | None
    method: CompressMethod

    @property
    def stage(self) -> str:
        """The unit of work that makes it, where no calibration does."""
        layer_id = layer_of(self.tensor.parts[0].name)
        return _OUTSIDE if layer_id is None else f"weights of layer {layer_id}"

    @property
    def is_expert(self) -> bool:
        """Whether it belongs to a routed expert."""
        return self.tensor.parts[0].name.startswith("experts.")

    @property
    def module(self) -> str:
        """The name before that of the compressed tensors."""
        return self.tensor.name.removesuffix(".weight")

    def entries(self) -> list[TensorEntry]:
        """What is stored."""
        if self.form is None:
            return [TensorEntry(self.tensor.name, self.tensor.dtype, self.tensor.shape)]
        rows, columns = self.tensor.shape
        shapes = self.form.shapes(rows, columns)
        return [TensorEntry(f"{self.module}.{suffix}", *shapes[suffix]) for suffix in shapes]

    def contents(self, source: SourceWeights) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """Name and numbers, in consecutive pieces, of each of its entries."""
        if self.form is None:
            yield self.tensor.name, self.tensor.values(source)
            return
        yield from self.compressed(compress(self._exact(source), self.form, self.method))

    def compressed(self, matrix: CompressedMatrix) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """The same of a matrix that was made elsewhere."""
        for suffix, values in matrix.tensors().items():
            yield f"{self.module}.{suffix}", [values]

    def check(self, stored: Mapping[str, StoredTensor], source: SourceWeights) -> None:
        """Read it back; ModelUnusable if it is not the source's, to the bit or within what its bits lose."""
        if self.form is None:
            self._check_equal(stored[self.tensor.name], source)
            return
        read = {suffix: stored_values(stored[f"{self.module}.{suffix}"]) for suffix in self.form.suffixes}
        exact = self._exact(source)
        lost = (CompressedMatrix.of_tensors(self.form, read).dequantized().float() - exact).square().sum()
        share = float(lost) / max(float(exact.square().sum()), torch.finfo(torch.float32).tiny)
        if not share <= _MOST_LOST[self.form.bits]:
            raise _unlike(
                stored[f"{self.module}.weight_packed"],
                f"its weights differ from the source's by {share:.3g} of their power, "
                f"{self.form.bits} bits lose at most {_MOST_LOST[self.form.bits]}",
            )

    def _exact(self, source: SourceWeights) -> Tensor:
        return source.whole(self.tensor.parts[0].name)

    def _check_equal(self, stored: StoredTensor, source: SourceWeights) -> None:
        start = 0
        for wanted in self.tensor.values(source):
            check_same_bits(stored, stored_values(stored, start, wanted.numel()), wanted.flatten(), start)
            start += wanted.numel()


def export_pieces(
    config: ModelConfig, layout: CompressedLayout, method: CompressMethod = "rtn"
) -> list[ExportPiece]:
    """All pieces of a checkpoint with this config. UsageError for groups that divide no matrix."""
    tensors = hub_tensors(config)
    layout.check(tensors)
    return [ExportPiece(tensor, layout.form_of(tensor), method) for tensor in tensors]


def check_pieces(directory: Path, pieces: Iterable[ExportPiece], source: SourceWeights) -> None:
    """Read every tensor of `directory` back; ModelUnusable as from `check`, and for one that is missing or
    one too many."""
    stored = {tensor.name: tensor for tensor in read_stored_tensors(directory)}
    pieces = list(pieces)
    wanted = {entry.name for piece in pieces for entry in piece.entries()}
    if stored.keys() != wanted:
        odd = sorted(stored.keys() ^ wanted)
        raise ModelUnusable(
            f"{directory} has {len(stored)} tensors, {len(wanted)} were to be written: {odd[0]}",
            "files of another run lie there",
            "export again to a new directory",
        )
    for piece in pieces:
        piece.check(stored, source)


def check_same_bits(stored: StoredTensor, found: Tensor, wanted: Tensor, start: int) -> None:
    """ModelUnusable unless what was read back has the bits of what was written; signs of zeros count.

    start: where in `stored` they begin.
    """
    bits = _BITS[wanted.dtype.itemsize]
    unlike = int((found.view(bits) != wanted.view(bits)).sum())
    if unlike:
        raise _unlike(
            stored, f"{unlike} of {wanted.numel()} numbers from {start} on are not those of the source"
        )


def stored_values(stored: StoredTensor, start: int = 0, count: int | None = None) -> Tensor:
    """Numbers of a tensor from `start` on, flat if `count` says how many, else all in their shape."""
    dtype = _STORED_DTYPES[stored.dtype]
    number = math.prod(stored.shape) if count is None else count
    with open_plain(stored.path) as file:
        file.seek(stored.offset + start * dtype.itemsize)
        values = torch.frombuffer(bytearray(file.read(number * dtype.itemsize)), dtype=dtype)
    return values if count is not None else values.view(stored.shape)


def _unlike(stored: StoredTensor, problem: str) -> ModelUnusable:
    return ModelUnusable(
        f"{stored}: {problem}",
        "it was written and read back",
        "check the disk, and export again to a new directory",
    )
