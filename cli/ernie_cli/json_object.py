"""Fills the result of a command and turns it into the object that `--json` prints.

A result is a dataclass whose defaults are what an unfinished run knows: nothing. The docstring under a field
says what it means; docs/write_json_page.py makes docs/json.md and the JSON Schemas from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ernie_cli.failures import Failure

Result = TypeVar("Result")


def fill_result(kind: type[Result], source: object, /, **given: object) -> Result:
    """An object of `kind` with the attributes of `source` that have the same names, and with `given`.

    Objects, lists and dicts inside are converted by the types of `kind`.
    """
    hashable: Any = kind
    values = {
        name: given[name] if name in given else _converted(hint, getattr(source, name))
        for name, hint in _hints(hashable).items()
    }
    return kind(**values)


def finished(command: str, result: Any, failure: Failure | None) -> dict[str, object]:
    """The object of a run of `command` that ended like this; a success where `failure` is None."""
    return {
        "schema": schema_name(command),
        "ok": failure is None,
        **asdict(result),
        "error": None if failure is None else asdict(failure),
    }


def schema_name(command: str) -> str:
    """The name and version of a command's object."""
    return f"ernie-local.{command}/1"


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _converted(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _converted(next(one for one in arguments if one is not type(None)), value)
    if origin is list:
        return [_converted(arguments[0], one) for one in value]
    if origin is dict:
        return {key: _converted(arguments[1], one) for key, one in value.items()}
    if is_dataclass(hint) and isinstance(hint, type) and not isinstance(value, hint):
        return fill_result(hint, value)
    return value
