"""Keeps vision tower and resampler in memory only while images are encoded, where experts are paged.

They lie in one mapping, whose memory the system has back in between: then it holds pages of experts. For the
next images they are read from the files again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from torch import nn

from ernie_local.checkpoint.packed import PackedTensors, known_format
from ernie_local.checkpoint.parts import is_for_images
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.experts.device import PageMemory
from ernie_local.files import check_plain
from ernie_local.kernels.arguments import PackedMatrix
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.layers import PackedLinear
from ernie_local.packing.formats import LowBitFormat
from ernie_local.packing.page import check_scales
from ernie_local.sizes import HUGE_PAGE

_ALIGNMENT = 64  # where tensors begin: a line of the processor's cache


class ImageWeights:
    """The weights of vision tower and resampler, on the CPU: zeros until `read`, and again after `drop`.

    num_bytes: of all of them.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, model: ErnieModel, dtype: torch.dtype
    ) -> None:
        """Give them to `model`, plain ones in `dtype`. No value is read before `read`."""
        self._checkpoint = Checkpoint(checkpoint.accounts)  # opens files of its own
        self._matrices = {one.stored_name: one for one in _packed_matrices(config)}
        sources, packed = checkpoint.accounts.sources, checkpoint.packed
        stored = {name: source.stored for name, source in sources.items() if is_for_images(name)}
        stored |= {name: packed[name] for name in self._matrices}
        # In the order of the files, so that a disk reads without a jump.
        in_order = sorted(stored, key=lambda name: (stored[name].path, stored[name].offset))
        shapes = {name: sources[name].shape if name in sources else packed[name].shape for name in in_order}
        dtypes = {name: dtype if name in sources else torch.uint8 for name in in_order}
        sizes = [torch.Size(shapes[name]).numel() * dtypes[name].itemsize for name in in_order]
        self.num_bytes = sum(sizes)
        rounded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        # Whole huge pages: of one that goes back in part, the rest would stay.
        self._memory = PageMemory(-(-sum(rounded) // HUGE_PAGE) * HUGE_PAGE)
        self._used = self._memory.bytes[: sum(rounded)]
        self._places = {
            name: piece[:size].view(dtypes[name]).view(shapes[name])
            for name, piece, size in zip(in_order, self._used.split(rounded), sizes, strict=True)
        }
        self._checksum: int | None = None  # after the first read
        self._is_in_memory = False
        self._files = {one.path: _FileVersion.of(one.path) for one in stored.values()}
        self._give_to(model)

    def read(self) -> None:
        """Bring all of them into memory, or none: ModelUnusable, with nothing kept, where that cannot be.

        That is for values that cannot be used, and for a file that is gone, or not the one that there was
        when the model was loaded.
        """
        if self._is_in_memory:
            return
        try:
            for path, known in self._files.items():
                known.check(path)
            for name, place in self._places.items():
                matrix = self._matrices.get(name)
                if matrix is None:
                    self._checkpoint.read(name, place)
                else:
                    self._checkpoint.read_packed(name, place)
                    check_scales(place, matrix.low_bit, matrix.columns, matrix.name)
            self._check_sum()
        except BaseException:
            self.drop()
            raise
        finally:
            self._checkpoint.close()
        self._is_in_memory = True

    def drop(self) -> None:
        """Give their memory back to the system, whatever a `read` has got to."""
        self._is_in_memory = False
        self._memory.discard(0, self._memory.num_bytes)

    def _check_sum(self) -> None:
        """ModelUnusable unless what was read is what was read before."""
        found = xxhash.xxh3_64_intdigest(self._used.numpy().data)
        if self._checksum is None:
            self._checksum = found
        if found != self._checksum:
            raise ModelUnusable(
                f"vision tower and resampler have the checksum {found:016x}, it was {self._checksum:016x} "
                "before",
                "a file of the model was changed while it was running, or the disk is failing",
                "run `ernie-local verify` on the checkpoint, then load the model again",
            )

    def _give_to(self, model: ErnieModel) -> None:
        for name, matrix in self._matrices.items():
            packed = PackedMatrix(self._places[name], matrix.low_bit.name, matrix.rows)
            bias = self._places.get(f"{matrix.name}.bias")
            model.set_submodule(matrix.name, PackedLinear(packed, bias))
        for name in self._places.keys() - self._matrices.keys():
            parent, _, own = name.rpartition(".")
            module = model.get_submodule(parent)
            if not isinstance(module, PackedLinear):  # which has its bias
                setattr(module, own, nn.Parameter(self._places[name], requires_grad=False))


class _Matrix(NamedTuple):
    """A packed matrix of the tower."""

    name: str
    low_bit: LowBitFormat
    rows: int
    columns: int

    @property
    def stored_name(self) -> str:
        """In the files."""
        return f"{self.name}.{self.low_bit.name}"


def _packed_matrices(config: ModelConfig) -> list[_Matrix]:
    packed, tables = PackedTensors(config), config.quantization
    formats = {} if tables is None else tables.matrices
    return [
        _Matrix(name, known_format(format_name), *packed.matrix_shape(name))
        for name, format_name in formats.items()
        if is_for_images(name)
    ]


class _FileVersion(NamedTuple):
    """What tells a file from the one that takes its place."""

    number: int
    num_bytes: int
    changed_at: int  # nanoseconds

    @staticmethod
    def of(path: Path) -> _FileVersion:
        """ModelUnusable for a file that is not there."""
        try:
            status = check_plain(path)
        except OSError as error:
            raise ModelUnusable(
                f"{path} cannot be read", error.strerror or str(error), _LOAD_AGAIN
            ) from error
        return _FileVersion(status.st_ino, status.st_size, status.st_mtime_ns)

    def check(self, path: Path) -> None:
        """ModelUnusable unless the file at `path` is of this version."""
        found = _FileVersion.of(path)
        if found != self:
            raise ModelUnusable(
                f"{path} has {found}, it had {self} when the model was loaded",
                "vision tower and resampler are read for each image, as experts need their memory in between",
                _LOAD_AGAIN,
            )

    def __str__(self) -> str:
        return f"{self.num_bytes} bytes of {datetime.fromtimestamp(self.changed_at / 1e9, UTC)}"


_LOAD_AGAIN = "put the file back, or load the model again; questions without an image need no file"
