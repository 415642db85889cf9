"""Cuts the blank margins of a page or scan, so that no tokens are spent on them.

Blank is what hardly differs from the colour of the outermost pixels, as far as the grain of the scan allows.
What may be content stays: a photo, or a page with something at its edge, keeps that side.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from PIL import Image, ImageChops

from ernie_local.media.image_view import CropBox
from ernie_local.media.open_image import OpenedImage

# The outermost pixels, which show the colour of the paper: this share of each side. Of them, this share has
# to be nearly of one colour.
_RING_SHARE, _PLAIN_SHARE = 0.01, 0.9
_MOST_GRAIN = 24  # of 255; an outermost pixel of a photo differs more from the others
# Content differs from the paper by this much more than its grain. The normal distribution has one value of
# 10^10 so many times farther from the median of its sizes than the one that 90 % do not exceed.
_LEAST_CONTRAST, _OUTLIERS = 6, 6
# Pixels that are averaged along a stroke: that brings out faint strokes from under the grain.
_STROKE = 16
_MARGIN_SHARE, _LEAST_MARGIN = 0.01, 4  # kept around the content: of the longer side, and pixels
_LEAST_GAIN = 0.05  # of the area; less is not worth another image
_STRIP_ROWS = 64


def trim_margins(opened: OpenedImage) -> OpenedImage:
    """The image without its blank margins; as it is where it has none, or where all of it is blank.

    A small margin stays. Its view says what was cut.
    """
    box = find_content(opened.image)
    return opened if box is None else opened.cropped(box)


def find_content(image: Image.Image) -> CropBox | None:
    """The part of an RGB image to keep, with a small margin; None for all of it."""
    deviations = _deviations_from_paper(image)
    if _quantile(_joined(_levels_at_edges(deviations)), _PLAIN_SHARE) > _MOST_GRAIN:
        return None
    boxes = []
    for across, down in ((1, 1), (_STROKE, 1), (1, _STROKE)):
        # Every pixel by itself, and averaged along strokes that run across and down.
        found = _strong_box(deviations.reduce((across, down)))
        if found is not None:
            left, top, right, bottom = found
            boxes.append((left * across, top * down, right * across, bottom * down))
    if not boxes:
        return None
    width, height = image.size
    margin = max(_LEAST_MARGIN, math.ceil(_MARGIN_SHARE * max(width, height)))
    left, top = (max(0, min(box[side] for box in boxes) - margin) for side in (0, 1))
    right = min(width, max(box[2] for box in boxes) + margin)
    bottom = min(height, max(box[3] for box in boxes) + margin)
    if (right - left) * (bottom - top) > (1 - _LEAST_GAIN) * width * height:
        return None
    return left, top, right, bottom


def _deviations_from_paper(image: Image.Image) -> Image.Image:
    """How far each pixel is from the paper, in the channel that differs most: mode L, as large as it."""
    counts = _joined(_levels_at_edges(image))
    paper = tuple(_quantile(counts[start : start + 256], 0.5) for start in (0, 256, 512))
    deviations = Image.new("L", image.size)
    # In strips, which stay in the cache: half the time.
    for top in range(0, image.height, _STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        red, green, blue = ImageChops.difference(strip, Image.new("RGB", strip.size, paper)).split()
        deviations.paste(ImageChops.lighter(ImageChops.lighter(red, green), blue), (0, top))
    return deviations


def _strong_box(deviations: Image.Image) -> CropBox | None:
    """The smallest box with all that differs from the paper by more than its grain."""
    limits = []
    for counts in _levels_at_edges(deviations):
        middle, most = _quantile(counts, 0.5), _quantile(counts, _PLAIN_SHARE)
        limits.append(middle + _OUTLIERS * (most - middle) + _LEAST_CONTRAST)
    # A band of colour along one edge is no grain of the paper.
    limit = min(limits)
    return deviations.point([255 * (level > limit) for level in range(256)]).getbbox()


def _levels_at_edges(image: Image.Image) -> list[list[int]]:
    """For each edge, how many of the outermost pixels have each of the 256 levels, channel after channel."""
    width, height = image.size
    across, down = (max(1, math.ceil(_RING_SHARE * side)) for side in image.size)
    strips = (
        (0, 0, width, down),
        (0, height - down, width, height),
        (0, 0, across, height),
        (width - across, 0, width, height),
    )
    return [image.crop(strip).histogram() for strip in strips]


def _joined(counts: Sequence[Sequence[int]]) -> list[int]:
    """Those of all edges together."""
    return [sum(levels) for levels in zip(*counts, strict=True)]


def _quantile(counts: Sequence[int], share: float) -> int:
    """The least level that this share of the counted values does not exceed."""
    return bisect_left(list(accumulate(counts)), share * sum(counts))
