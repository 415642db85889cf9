"""Holds an image or a video as the vision tower takes it, or as the tower left it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """The patches of one image.

    pixel_values: (t * h * w, channels * patch_size * patch_size) float32, on the CPU, normalized.
        Rows run over (h / merge, w / merge, merge, merge), so the patches of one merge window are neighbours;
        columns run over (channel, patch row, patch column).
    grid: (t, h, w) in patches, before merging; t is 1 for an image.
    original_size, resized_size: (width, height) in pixels.
    num_tokens: placeholder tokens of the image, h * w / merge^2.
    """

    pixel_values: torch.Tensor
    grid: tuple[int, int, int]
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    num_tokens: int

    def __post_init__(self) -> None:
        frames, rows, columns = self.grid
        num_patches = frames * rows * columns
        if min(self.grid) < 1 or self.pixel_values.ndim != 2 or self.pixel_values.shape[0] != num_patches:
            raise ValueError(
                f"pixel_values of shape {tuple(self.pixel_values.shape)} do not fit the grid {self.grid}, "
                f"which needs {num_patches} rows"
            )
        if self.num_tokens < 1 or num_patches % self.num_tokens:
            raise ValueError(f"{num_patches} patches cannot be shared out over {self.num_tokens} tokens")

    @property
    def num_patches(self) -> int:
        """Rows of pixel_values."""
        return int(self.pixel_values.shape[0])

    @property
    def pieces(self) -> tuple[Patches, ...]:
        """What is encoded by itself: all of it."""
        return (self,)


class FramePair(Protocol):
    """Two frames of a video, as Patches of their own, whose values are made whenever they are asked for."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """(2, h, w) in patches."""
        ...

    @property
    def pixel_values(self) -> torch.Tensor:
        """As of Patches."""
        ...

    @property
    def num_patches(self) -> int:
        """Rows of pixel_values."""
        ...

    @property
    def num_tokens(self) -> int:
        """Placeholder tokens of the two frames."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class VideoPatches:
    """The patches of a video, made pair of frames by pair: frames attend within themselves, and the resampler
    joins two, so that each pair is encoded by itself."""

    pieces: tuple[FramePair, ...]

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w) in patches of all frames."""
        _, rows, columns = self.pieces[0].grid
        return sum(pair.grid[0] for pair in self.pieces), rows, columns

    @property
    def num_tokens(self) -> int:
        """Placeholder tokens of the video."""
        return sum(pair.num_tokens for pair in self.pieces)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """An image or a video that has been through the vision tower before, in place of its patches.

    features: (num_tokens, hidden_size), on the CPU. grid: as of Patches.
    """

    features: torch.Tensor
    grid: tuple[int, int, int]

    @property
    def num_tokens(self) -> int:
        """Placeholder tokens of the image."""
        return int(self.features.shape[0])


MediaPatches: TypeAlias = Patches | VideoPatches
MediaPiece: TypeAlias = Patches | FramePair
MediaInput: TypeAlias = Patches | VideoPatches | EncodedImage
