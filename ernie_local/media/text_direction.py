"""Tells whether lines of text run up and down an image, by how its letters join to words.

The gap between two letters of a word is smaller than that between two lines. So letters that are smeared
along their line join to long shapes, and letters that are smeared across it do not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# What may be a letter, or a word whose letters touch: so many pixels long, and at most these shares of the
# image's side long and wide. Rules, frames, bars and curves are none.
_SHORTEST, _LONGEST_SHARE, _WIDEST_SHARE = 5, 0.12, 0.04
_FEWEST_LETTERS = 60
_SMEARED_SHARE = 0.6  # of the width of a letter; typewriters leave half of it between two
# Sideways text: shapes that are so many times longer up and down than across, and so much fewer by joining.
_CLEARLY_LONGER, _JOINED_SHARE = 1.5, 0.75

_Bits = NDArray[np.bool_]
_Integers = NDArray[np.int64]


class _Runs(NamedTuple):
    """Ink without a gap along a row, from `starts` to before `ends`: flat places in rows of `row_length`.

    A row is one longer than the image, so that no run reaches into the next one.
    """

    starts: _Integers
    ends: _Integers
    row_length: int


class _Shapes(NamedTuple):
    """Connected ink. indices: the shape of each run."""

    indices: _Integers
    widths: _Integers
    heights: _Integers


def text_is_sideways(ink: _Bits) -> bool:
    """Whether most text of an image, shape (height, width), runs up and down. False for too little text."""
    letters = _keep_letters(ink)
    if letters is None:
        return False
    mask, sizes = letters
    gap = max(1, round(_SMEARED_SHARE * float(np.median(sizes))))
    across = _long_shapes(_smear(mask, gap))
    down = _long_shapes(_smear(np.ascontiguousarray(mask.T), gap))
    if not len(across) or not len(down) or len(down) > _JOINED_SHARE * len(across):
        return False
    return float(down.mean()) > _CLEARLY_LONGER * float(across.mean())


def _keep_letters(ink: _Bits) -> tuple[_Bits, _Integers] | None:
    """The ink of letters alone, and the width of each, or None where there are few."""
    runs = _find_runs(ink)
    shapes = _find_shapes(runs)
    longer = np.maximum(shapes.widths, shapes.heights)
    shorter = np.minimum(shapes.widths, shapes.heights)
    side = max(ink.shape)
    are_letters = longer >= _SHORTEST
    are_letters &= (longer <= _LONGEST_SHARE * side) & (shorter <= _WIDEST_SHARE * side)
    if are_letters.sum() < _FEWEST_LETTERS:
        return None
    kept = are_letters[shapes.indices]
    return _fill(ink.shape, runs.starts[kept], runs.ends[kept]), shorter[are_letters]


def _long_shapes(mask: _Bits) -> _Integers:
    """The widths of its shapes, without dots."""
    widths = _find_shapes(_find_runs(mask)).widths
    return widths[widths >= math.ceil(_SHORTEST / 2)]


def _smear(mask: _Bits, gap: int) -> _Bits:
    """The mask with all gaps of up to `gap` pixels along its rows filled."""
    starts, ends, row_length = _find_runs(mask)
    are_small = (starts[1:] - ends[:-1] <= gap) & (starts[1:] // row_length == ends[:-1] // row_length)
    return mask | _fill(mask.shape, ends[:-1][are_small], starts[1:][are_small])


def _find_runs(mask: _Bits) -> _Runs:
    padded = np.pad(mask, ((0, 0), (0, 1))).ravel().astype(np.int8)
    steps = np.diff(padded, prepend=0)
    return _Runs(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), mask.shape[1] + 1)


def _fill(shape: tuple[int, ...], starts: _Integers, ends: _Integers) -> _Bits:
    """A mask of (height, width) `shape` with ink at these runs only."""
    height, width = shape
    steps = np.zeros(height * (width + 1), np.int8)
    steps[starts] = 1
    steps[ends] -= 1
    return np.cumsum(steps, dtype=np.int8).reshape(height, width + 1)[:, :-1].astype(bool)


def _find_shapes(runs: _Runs) -> _Shapes:
    """Joins runs that touch a run of the next row."""
    starts, ends, row_length = runs
    first = np.searchsorted(ends, starts + row_length, side="right")
    counts = np.maximum(0, np.searchsorted(starts, ends + row_length, side="left") - first)
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    # Each run gets the lowest number that it is joined with; numbers of numbers make long chains short.
    numbers = np.arange(len(starts))
    while True:
        before = numbers.copy()
        lowest = np.minimum(numbers[upper], numbers[lower])
        for joined in (upper, lower, before[upper], before[lower]):
            np.minimum.at(numbers, joined, lowest)
        numbers = numbers[numbers]
        if (numbers == before).all():
            break
    found, indices = np.unique(numbers, return_inverse=True)
    far = np.iinfo(np.int64).max
    left, top = np.full(len(found), far), np.full(len(found), far)
    right, bottom = np.zeros(len(found), np.int64), np.zeros(len(found), np.int64)
    np.minimum.at(left, indices, starts % row_length)
    np.maximum.at(right, indices, ends - starts + starts % row_length)
    np.minimum.at(top, indices, starts // row_length)
    np.maximum.at(bottom, indices, starts // row_length + 1)
    return _Shapes(indices, right - left, bottom - top)
