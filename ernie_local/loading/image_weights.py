"""Keeps vision tower and resampler in memory only while images are encoded, where experts are paged.

They lie in one mapping, whose memory the system has back in between: then it holds pages of experts. For the
next images they are read from the files again.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from ernie_local.sizes import HUGE_PAGE, aligned, format_bytes


class ImageWeights:
    """The weights of vision tower and resampler, on the CPU: zeros until `read`, and again after `drop`.

    num_bytes: of all of them; places: where each lies, by its name in the files.
    """

    is_streamed = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        model: ErnieModel,
        dtype: torch.dtype,
        gpu_kernels: str = "auto",
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
        self.num_bytes = self.budget_bytes = sum(sizes)
        rounded = [aligned(size) for size in sizes]
        # Whole huge pages: of one that goes back in part, the rest would stay.
        self.memory = PageMemory(aligned(sum(rounded), HUGE_PAGE))
        self._used = self.memory.bytes[: sum(rounded)]
        self.places = {
            name: piece[:size].view(dtypes[name]).view(shapes[name])
            for name, piece, size in zip(in_order, self._used.split(rounded), sizes, strict=True)
        }
        self._checksum: int | None = None  # after the first read
        self._is_in_memory = False
        parts = (part for name in stored if name in sources for part in sources[name].stored_parts)
        paths = dict.fromkeys(one.path for one in (*stored.values(), *parts))
        self._files = {path: _FileVersion.of(path) for path in paths}
        for matrix in self._matrices.values():
            place = self.places[matrix.stored_name]
            layer = PackedLinear(PackedMatrix(place, matrix.low_bit.name, matrix.rows, gpu_kernels))
            model.set_submodule(matrix.name, layer)
        self._owners = {name: self._owner(model, name) for name in in_order}
        self.give(self.places)

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
            for name, place in self.places.items():
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
        self.memory.discard(0, self.memory.num_bytes)

    def give(self, places: Mapping[str, torch.Tensor]) -> None:
        """Have the model compute from these places, of the same shapes and dtypes."""
        for name, place in places.items():
            module, own = self._owners[name]
            is_buffer = isinstance(module, PackedLinear)
            setattr(module, own, place if is_buffer else nn.Parameter(place, requires_grad=False))

    def describe(self) -> str:
        """For people."""
        size = format_bytes(self.num_bytes)
        return f"vision tower and resampler: {size}, in memory only while images are encoded"

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

    def _owner(self, model: ErnieModel, name: str) -> tuple[nn.Module, str]:
        """The module that has this tensor, and the attribute."""
        if name in self._matrices:
            return model.get_submodule(self._matrices[name].name), "packed"
        parent, _, own = name.rpartition(".")
        return model.get_submodule(parent), own


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
