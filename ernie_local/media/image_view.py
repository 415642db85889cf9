"""Maps places in the image that the model sees to places in the original file, and back.

Between the two lie the turn by EXIF data, the scale at which the file was opened, the cut of blank margins,
and the shrinking to the model's limit. Pure arithmetic: imports no Pillow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from ernie_local.errors import UsageError

ViewPoint: TypeAlias = tuple[float, float]  # x, y
ViewBox: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom
CropBox: TypeAlias = tuple[int, int, int, int]  # the same in whole pixels
ViewUnit = Literal["thousandths", "pixels"]

# How an EXIF orientation turns a stored image upright: whether its sides are swapped first, and whether the
# result is mirrored left to right, and top to bottom.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}

_NEARLY = 1e-6  # of a pixel


@dataclass(frozen=True, slots=True)
class ImageView:
    """Where the image that the model sees lies in the original.

    original_size: (width, height) of the stored image in pixels, before its EXIF turn; of a PDF page in
    points of 1/72 inch, as a viewer shows it. orientation: of its EXIF data, 1 to 8. opened_size: in pixels,
    upright, as it was opened: large images are reduced, PDF pages drawn. crop: (left, top, right, bottom) of
    the part of it that is kept. seen_size: of that part as the model sees it.

    Places are continuous: (0, 0) is the upper left corner, and the pixel in column i and row j covers i to
    i + 1 and j to j + 1. Models write thousandths: (1000, 1000) is the lower right corner of what they see.
    A large image is reduced by a whole number, so that places in it are true to that many pixels.
    """

    original_size: tuple[float, float]
    orientation: int
    opened_size: tuple[int, int]
    crop: CropBox
    seen_size: tuple[int, int]

    @classmethod
    def whole(
        cls,
        opened_size: tuple[int, int],
        original_size: tuple[float, float] | None = None,
        orientation: int = 1,
    ) -> ImageView:
        """All of an image that was opened at (width, height) `opened_size`, before the model sees it.

        original_size: None where it was opened as it is stored, but for the turn.
        """
        swaps = _TURNS[orientation][0]
        stored_size = opened_size[::-1] if swaps else opened_size
        return cls(original_size or stored_size, orientation, opened_size, (0, 0, *opened_size), opened_size)

    @classmethod
    def unreduced(cls, stored_size: tuple[int, int], orientation: int = 1) -> ImageView:
        """All of an image of (width, height) `stored_size`, turned and otherwise as it is stored."""
        swaps = _TURNS[orientation][0]
        return cls.whole(stored_size[::-1] if swaps else stored_size, stored_size, orientation)

    @property
    def upright(self) -> ImageView:
        """The same with the original turned upright, as viewers and browsers show it."""
        swaps = _TURNS[self.orientation][0]
        size = self.original_size[::-1] if swaps else self.original_size
        return replace(self, original_size=size, orientation=1)

    @property
    def opened(self) -> ImageView:
        """The same with the opened image, all of it, in the place of the original."""
        return replace(self, original_size=self.opened_size, orientation=1)

    @property
    def is_cropped(self) -> bool:
        """Whether a part of the opened image is left out."""
        return self.crop != (0, 0, *self.opened_size)

    @property
    def cropped_size(self) -> tuple[int, int]:
        """(width, height) of the part that is kept, in pixels of the opened image."""
        left, top, right, bottom = self.crop
        return right - left, bottom - top

    def cropped(self, box: CropBox) -> ImageView:
        """The view of a part of what this one keeps; ValueError for a box that does not lie in it."""
        left, top, right, bottom = box
        width, height = self.cropped_size
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"the box {box} does not lie in an image of {width} x {height} pixels")
        x, y = self.crop[:2]
        crop = (x + left, y + top, x + right, y + bottom)
        return replace(self, crop=crop, seen_size=(right - left, bottom - top))

    def resized(self, seen_size: tuple[int, int]) -> ImageView:
        """The same part at another (width, height)."""
        return replace(self, seen_size=seen_size)

    def to_original(self, point: ViewPoint, unit: ViewUnit = "thousandths") -> ViewPoint:
        """The place in the original of a point that the model sees.

        unit: of `point`, thousandths of both sides or pixels of `seen_size`. Points outside of what the model
        sees are mapped too. UsageError for another unit.
        """
        width, height = self._view_size(unit)
        left, top, _, _ = self.crop
        kept_width, kept_height = self.cropped_size
        opened_width, opened_height = self.opened_size
        x = (left + point[0] / width * kept_width) / opened_width
        y = (top + point[1] / height * kept_height) / opened_height
        swaps, mirrors_x, mirrors_y = _TURNS[self.orientation]
        x, y = 1 - x if mirrors_x else x, 1 - y if mirrors_y else y
        x, y = (y, x) if swaps else (x, y)
        return x * self.original_size[0], y * self.original_size[1]

    def from_original(self, point: ViewPoint, unit: ViewUnit = "thousandths") -> ViewPoint:
        """Where the model sees a point of the original; the inverse of `to_original`."""
        width, height = self._view_size(unit)
        x, y = point[0] / self.original_size[0], point[1] / self.original_size[1]
        swaps, mirrors_x, mirrors_y = _TURNS[self.orientation]
        x, y = (y, x) if swaps else (x, y)
        x, y = 1 - x if mirrors_x else x, 1 - y if mirrors_y else y
        left, top, _, _ = self.crop
        kept_width, kept_height = self.cropped_size
        x = (x * self.opened_size[0] - left) / kept_width
        y = (y * self.opened_size[1] - top) / kept_height
        return x * width, y * height

    def box_to_original(self, box: ViewBox, unit: ViewUnit = "thousandths") -> ViewBox:
        """The box of the original that a box which the model sees stands for, its corners in order."""
        return _spanned(self.to_original(box[:2], unit), self.to_original(box[2:], unit))

    def box_from_original(self, box: ViewBox, unit: ViewUnit = "thousandths") -> ViewBox:
        """The box that the model sees of a box of the original, its corners in order."""
        return _spanned(self.from_original(box[:2], unit), self.from_original(box[2:], unit))

    def _view_size(self, unit: ViewUnit) -> tuple[int, int]:
        if unit not in get_args(ViewUnit):
            raise UsageError(
                f"unit {unit!r} of a place in an image is unknown",
                "the model writes thousandths of both sides, and its patches are counted in pixels",
                'use "thousandths" or "pixels"',
            )
        return (1000, 1000) if unit == "thousandths" else self.seen_size


def whole_pixels(box: ViewBox, size: tuple[int, int]) -> CropBox:
    """All pixels of an image of (width, height) `size` that the box touches, at least one."""
    width, height = size
    # An edge that was mapped there and back lies some billionths beside its pixel.
    left, top = (max(0, math.floor(side + _NEARLY)) for side in box[:2])
    right, bottom = (math.ceil(side - _NEARLY) for side in box[2:])
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)


def _spanned(first: ViewPoint, second: ViewPoint) -> ViewBox:
    (left, right), (top, bottom) = sorted((first[0], second[0])), sorted((first[1], second[1]))
    return left, top, right, bottom
