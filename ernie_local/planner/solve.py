"""The best setting that fits: fewest bits dropped, longest context, or most experts on the GPU.

Owns the search alone; whether a setting fits is asked of the caller. Knows no machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Setting = TypeVar("Setting")
_CONTEXT_STEP = 1024


def first_that_fits(settings: Sequence[Setting], fits: Callable[[Setting], bool]) -> Setting | None:
    """The first of `settings`, best first, that fits."""
    return next((setting for setting in settings if fits(setting)), None)


def longest_context(most: int, fits: Callable[[int], bool], least: int = _CONTEXT_STEP) -> int | None:
    """The most tokens, in steps of 1024 from `least` to `most`, that fit; longer ones never fit where shorter
    do not. None if not even the least does."""
    if not fits(least):
        return None
    if fits(most):
        return most
    low, high = least // _CONTEXT_STEP, most // _CONTEXT_STEP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _CONTEXT_STEP) else (low, middle)
    return max(least, low * _CONTEXT_STEP)
