"""Figures compared to six digits: on some machines products differ in their last bits from call to call."""

from __future__ import annotations

from typing import Any


def rounded_floats(value: Any) -> Any:
    """The same of dicts, lists and tuples, with every float to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded_floats(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded_floats(one) for one in value]
    return value
