"""Keeps the chosen frames of a video, and makes patches of two of them at a time.

The frames of a long video are half a gigabyte, and their patches two. Those of a file lie in a file without a
name. Those of a video that came as bytes stay in memory, as nothing of it was ever on a disk.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_local.errors import DoesNotFit, OutOfMemory
from ernie_local.media.patches import VideoPatches
from ernie_local.media.processor import frames_to_rows
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    import torch
    from PIL import Image

_DIGEST_BYTES = 16


class FrameStore:
    """Frames of one size, as the model sees them, numbered from 0. Several threads may read."""

    def __init__(self, size: tuple[int, int], num_frames: int, *, in_memory: bool = False) -> None:
        """size: (width, height) of each frame. OutOfMemory where memory for them cannot be had."""
        self.size = size
        self.num_frames = num_frames
        self._held: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None
        if in_memory:
            self._held = self._frames_in_memory()
        else:
            self._file = tempfile.TemporaryFile(prefix="ernie-local-")  # noqa: SIM115  as long as its owner
        self._digests = [b""] * num_frames

    @property
    def digest(self) -> str:
        """A hash of all frames."""
        return hashlib.blake2b(b"".join(self._digests), digest_size=_DIGEST_BYTES).hexdigest()

    def write(self, index: int, frame: Image.Image) -> None:
        """Put an RGB frame of this size into its place; DoesNotFit where the disk is full."""
        assert frame.size == self.size, (frame.size, self.size)
        data = frame.tobytes()
        self._digests[index] = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
        if self._held is not None:
            self._held[index] = np.frombuffer(data, dtype=np.uint8).reshape(self._held[index].shape)
            return
        try:
            num_written = os.pwrite(self._file.fileno(), data, index * len(data))
            if num_written < len(data):  # the rest had no room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise DoesNotFit(
                f"the frames of a video: {format_bytes(self.num_frames * len(data))} do not fit",
                f"they lie in {tempfile.gettempdir()} until the model has seen them: {error.strerror}",
                "TMPDIR=/a/larger/disk ernie-local ..., or fewer frames",
            ) from error

    def read(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """A frame: (height, width, 3) uint8."""
        if self._held is not None:
            frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = self._held[index]
            return frame
        width, height = self.size
        num_bytes = 3 * width * height
        data = os.pread(self._file.fileno(), num_bytes, index * num_bytes)
        return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)

    def _frames_in_memory(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        width, height = self.size
        shape = (self.num_frames, height, width, 3)
        try:
            return np.empty(shape, dtype=np.uint8)
        except MemoryError as error:
            raise OutOfMemory(
                f"the frames of a video: {format_bytes(math.prod(shape))} cannot be had",
                "a video that is given as bytes keeps the frames that the model sees in memory",
                "fewer frames, or a shorter part of the video",
            ) from error

    def patches(self, config: ImageProcessorConfig) -> VideoPatches:
        """Of all frames, the last one twice where their number is odd."""
        last = self.num_frames - 1
        pairs = [(first, min(first + 1, last)) for first in range(0, self.num_frames, 2)]
        return VideoPatches(tuple(StoredPair(self, pair, config) for pair in pairs))


@dataclass(frozen=True, slots=True, eq=False)
class StoredPair:
    """Two frames of a store as a FramePair."""

    store: FrameStore
    indices: tuple[int, int]
    config: ImageProcessorConfig

    @property
    def grid(self) -> tuple[int, int, int]:
        """(2, h, w) in patches."""
        width, height = self.store.size
        return 2, height // self.config.patch_size, width // self.config.patch_size

    @property
    def pixel_values(self) -> torch.Tensor:
        """As of Patches, made now."""
        return frames_to_rows([self.store.read(index) for index in self.indices], self.config)

    @property
    def num_patches(self) -> int:
        """Rows of pixel_values."""
        frames, rows, columns = self.grid
        return frames * rows * columns

    @property
    def num_tokens(self) -> int:
        """Placeholder tokens of the two frames, which are joined."""
        return self.num_patches // (2 * self.config.merge_size**2)
