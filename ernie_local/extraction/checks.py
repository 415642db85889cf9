"""Checks between the fields of a document, such as `total == sum(lines.price)`.

Names are fields. `lines.price` is a list with the price of each line; arithmetic with lists goes item by
item, and a comparison holds for a list when it holds for each item. Numbers are equal when they differ by
less than a billionth of the larger: `0.1 + 0.2 == 0.3`. A check of a field without a value fails.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpleeval

from ernie_local.errors import UsageError, parameter
from ernie_local.extraction.check_values import FUNCTIONS, OPERATORS, short_text
from ernie_local.extraction.schema_sample import sample_of

MOST_CHARACTERS = 1000
_MOST_DEPTH = 60
_EXAMPLE = "total == sum(lines.price)"
_ERRORS = (TypeError, ValueError, ArithmeticError, simpleeval.InvalidExpression)
_NODES = (
    ast.Expression, ast.Name, ast.Attribute, ast.Constant, ast.Call, ast.Load,
    ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BoolOp, ast.And, ast.Or,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One expression, parsed. text: as it was written."""

    text: str
    _tree: ast.expr = field(repr=False, compare=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """The paths that it names, in order: `total`, `lines.price`."""
        return tuple(dict.fromkeys(_paths(self._tree)))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it holds for the fields of a document; what cannot be computed does not hold."""
        try:
            return self._result(values) is True
        except _ERRORS:
            return False

    def describe(self, values: Mapping[str, Any]) -> str:
        """The expression and what its fields are: `total == net + tax (total is 12, net is 5, tax is 6)`."""
        found = []
        for path in self.fields:
            try:
                found.append(f"{path} is {short_text(_look_up(values, path))}")
            except _ERRORS:
                found.append(f"{path} has no value")
        return f"{self.text} ({', '.join(found)})" if found else self.text

    def _result(self, values: Mapping[str, Any]) -> Any:
        evaluator = simpleeval.SimpleEval(OPERATORS, FUNCTIONS, {})
        known = evaluator.nodes
        # Its own names and attributes would find methods of Python's types.
        read = {kind: lambda node: _look_up(values, _path_of(node)) for kind in (ast.Name, ast.Attribute)}
        evaluator.nodes = {kind: known[kind] for kind in _NODES if kind in known} | read
        return evaluator.eval(self.text, self._tree)


def parse_check(text: str, schema: Mapping[str, Any]) -> Check:
    """The check that `text` says, for answers of this JSON schema.

    UsageError for what is no comparison of fields, for fields that the schema has not, and for a function of
    another kind of value, such as the sum of a text.
    """
    check = Check(text, _parse(text))
    example = sample_of(schema)
    for path in check.fields:
        try:
            _look_up(example, path)
        except _ERRORS as error:
            raise _unusable(text, f"there is no field {path}; the fields are {', '.join(example)}") from error
    try:
        result = check._result(example)
    except ZeroDivisionError:  # of the example's numbers
        return check
    except _ERRORS as error:
        raise _unusable(text, str(error)) from error
    if not isinstance(result, bool):
        raise _unusable(text, "it compares nothing: its value is neither true nor false")
    return check


def failed_checks(checks: Sequence[Check], values: Mapping[str, Any]) -> tuple[Check, ...]:
    """Those that do not hold."""
    return tuple(check for check in checks if not check.holds(values))


def _parse(text: str) -> ast.expr:
    if len(text) > MOST_CHARACTERS:
        raise _unusable(
            text[:40] + "...",
            f"it has {len(text)} characters, at most {MOST_CHARACTERS} are read",
            "a shorter one",
        )
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise _unusable(
            text,
            f"it cannot be read: {reason}",
            f"field names that are single words, as in {parameter('check', _EXAMPLE)}",
        ) from error
    nodes: list[ast.AST] = [tree]
    depth = 0
    while nodes:
        nodes, depth = [child for node in nodes for child in ast.iter_child_nodes(node)], depth + 1
    if depth > _MOST_DEPTH:
        raise _unusable(text, f"it is nested {depth} deep, at most {_MOST_DEPTH} is read", "a simpler one")
    for node in ast.walk(tree):
        if not _is_read(node):
            raise _unusable(
                text,
                f"{ast.unparse(node)!r} is not read here: numbers, texts, fields, + - * / // %, comparisons, "
                f"and, or, not, and {', '.join(FUNCTIONS)} are",
            )
        if isinstance(node, ast.Call):
            _check_arguments(text, node)
    return tree.body


def _is_read(node: ast.AST) -> bool:
    """Whether a node is of the language of checks. An operator is told of with what it joins."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name | ast.Attribute)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | int | float)
    if isinstance(node, ast.BinOp | ast.UnaryOp):
        return isinstance(node.op, _NODES)
    if isinstance(node, ast.Compare):
        return all(isinstance(operator, _NODES) for operator in node.ops)
    return isinstance(node, _NODES)


def _check_arguments(text: str, call: ast.Call) -> None:
    name = ast.unparse(call.func)
    try:
        inspect.signature(FUNCTIONS[name]).bind(*call.args)
    except TypeError as error:
        raise _unusable(text, f"{name}: {error}") from error


def _paths(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name | ast.Attribute):
        yield _path_of(node)
        return
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    for child in children:
        yield from _paths(child)


def _path_of(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_path_of(node.value)}.{node.attr}"
    assert isinstance(node, ast.Name)
    return node.id


def _look_up(values: Any, path: str) -> Any:
    """The value at a path, a list where it goes through lists; ValueError where there is none."""
    for name in path.split("."):
        values = _member(values, name)
    return values


def _member(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_member(item, name) for item in value]
    if not isinstance(value, dict) or value.get(name) is None:
        raise ValueError(f"{name} has no value")
    return value[name]


def _unusable(text: str, why: str, hint: str = parameter("check", _EXAMPLE)) -> UsageError:
    return UsageError(f"{parameter('check', text)} cannot be used", why, hint)
