"""Cases that the default run need not all have: it has the first ones, and the slow run has the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(values: Iterable[Any], num_default: int) -> list[Any]:
    """`values` for parametrize, in their order; all but the first `num_default` are marked slow."""
    return [
        value if number < num_default else pytest.param(*_arguments(value), marks=pytest.mark.slow)
        for number, value in enumerate(values)
    ]


def _arguments(value: Any) -> tuple[Any, ...]:
    """A tuple stands for several parameters, as in parametrize."""
    return value if isinstance(value, tuple) else (value,)
