"""Compares figures to five digits: on some machines products differ in their last bits from call to call."""

from __future__ import annotations

import math
from typing import Any


def same_figures(first: Any, second: Any) -> bool:
    """Whether dicts, lists and tuples are equal, but for floats that differ by a hundred-thousandth."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-5, abs_tol=1e-12)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_figures(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same_figures, first, second))
    return bool(first == second)
