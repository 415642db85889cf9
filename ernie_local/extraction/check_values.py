"""Computes with the values of fields, for checks: arithmetic and comparisons of numbers and of lists of them.

A list is computed with item by item. Whatever takes long or fills memory is refused: texts are not repeated,
there are no powers.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from ernie_local.strict_json import show

_CLOSE = 1e-9  # share of the larger number
_MOST_DIGITS = 20  # round(1, -1000000000) would compute a number of so many digits
_SHOWN_ITEMS = 8


def short_text(value: Any) -> str:
    """A value for a message."""
    if isinstance(value, list):
        shown = ", ".join(map(short_text, value[:_SHOWN_ITEMS]))
        return f"[{shown}{', ...' if len(value) > _SHOWN_ITEMS else ''}]"
    return show(value)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} takes numbers, and {short_text(value)} is none")
    return value


def _by_item(compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The same for a list and a value, and for two lists of one length."""

    def computed(left: Any, right: Any) -> Any:
        if isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                raise ValueError(f"lists of {len(left)} and {len(right)} values")
            return [computed(one, other) for one, other in zip(left, right, strict=True)]
        if isinstance(left, list):
            return [computed(item, right) for item in left]
        if isinstance(right, list):
            return [computed(left, item) for item in right]
        return compute(left, right)

    return computed


def _arithmetic(sign: str, compute: Callable[[float, float], float]) -> Callable[[Any, Any], Any]:
    return _by_item(lambda left, right: compute(_number(left, sign), _number(right, sign)))


def _comparison(
    sign: str, compare: Callable[[Any, Any], bool], when_close: bool
) -> Callable[[Any, Any], bool]:
    """when_close: the result for two numbers that are equal but for rounding."""
    compare_items = _by_item(lambda left, right: _compare(sign, compare, when_close, left, right))

    def compared(left: Any, right: Any) -> bool:
        return _all_true(compare_items(left, right))

    return compared


def _compare(sign: str, compare: Callable[[Any, Any], bool], when_close: bool, left: Any, right: Any) -> bool:
    if isinstance(left, str | bool) or isinstance(right, str | bool):
        if type(left) is not type(right):
            raise TypeError(f"{short_text(left)} {sign} {short_text(right)} compares values of two kinds")
        return compare(left, right)
    left, right = _number(left, sign), _number(right, sign)
    return when_close if math.isclose(left, right, rel_tol=_CLOSE, abs_tol=_CLOSE) else compare(left, right)


def _all_true(value: Any) -> bool:
    return all(map(_all_true, value)) if isinstance(value, list) else bool(value)


def _numbers(value: Any, what: str) -> list[float]:
    """Also of lists in lists: `sum(pages.lines.price)`."""
    if not isinstance(value, list):
        raise TypeError(f"{what} takes a list, and {short_text(value)} is none")
    return [
        number
        for item in value
        for number in (_numbers(item, what) if isinstance(item, list) else [_number(item, what)])
    ]


def _extreme(what: str, choose: Callable[[list[float]], float]) -> Callable[..., float]:
    def chosen(*values: Any) -> float:
        return choose(_numbers(values[0] if len(values) == 1 else list(values), what))

    return chosen


def _each(what: str, compute: Callable[[float], float]) -> Callable[[Any], Any]:
    def computed(value: Any) -> Any:
        return (
            [computed(item) for item in value] if isinstance(value, list) else compute(_number(value, what))
        )

    return computed


def _round(value: Any, digits: Any = 0) -> Any:
    if isinstance(digits, bool) or not isinstance(digits, int) or abs(digits) > _MOST_DIGITS:
        raise ValueError(f"round takes -{_MOST_DIGITS} to {_MOST_DIGITS} digits, not {short_text(digits)}")
    return _each("round", lambda number: round(number, digits))(value)


def _length(value: Any) -> int:
    if not isinstance(value, list | str):
        raise TypeError(f"len takes a list or a text, and {short_text(value)} is none")
    return len(value)


def _negated(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"not takes what is true or false, and {short_text(value)} is neither")
    return not value


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _arithmetic("+", operator.add),
    ast.Sub: _arithmetic("-", operator.sub),
    ast.Mult: _arithmetic("*", operator.mul),
    ast.Div: _arithmetic("/", operator.truediv),
    ast.FloorDiv: _arithmetic("//", operator.floordiv),
    ast.Mod: _arithmetic("%", operator.mod),
    ast.Eq: _comparison("==", operator.eq, when_close=True),
    ast.NotEq: _comparison("!=", operator.ne, when_close=False),
    ast.Lt: _comparison("<", operator.lt, when_close=False),
    ast.LtE: _comparison("<=", operator.le, when_close=True),
    ast.Gt: _comparison(">", operator.gt, when_close=False),
    ast.GtE: _comparison(">=", operator.ge, when_close=True),
    ast.USub: _each("-", operator.neg),
    ast.UAdd: _each("+", operator.pos),
    ast.Not: _negated,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": lambda values: sum(_numbers(values, "sum")),
    "len": _length,
    "min": _extreme("min", min),
    "max": _extreme("max", max),
    "abs": _each("abs", abs),
    "round": _round,
}
