"""Two worlds: what calibration draws from, and what is held out for judging on other documents.

Owns how lists are split. Names are split by their letters instead (pictures/names.py), so that a name that
stands in two lists belongs to one world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

HELD_OUT_EVERY = 4
Choice = TypeVar("Choice")


def of_world(choices: Sequence[Choice], held_out: bool) -> list[Choice]:
    """Every fourth choice if held out, else the others. Lists of fewer than four serve both worlds."""
    if len(choices) < HELD_OUT_EVERY:
        return list(choices)
    return [
        choice
        for index, choice in enumerate(choices)
        if (index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
    ]
