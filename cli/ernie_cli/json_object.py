"""Fills the result of a command and turns it into the object that `--json` prints.

A result is a dataclass whose defaults are what an unfinished run knows: nothing. The comment `#:` behind a
field, or the docstring under it, says what it means; docs/write_json_page.py makes docs/json.md and the JSON
Schemas from these classes. `Annotated[int, "num_bytes"]` is a field that is filled from another attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from operator import attrgetter
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ernie_cli.failures import Failure

Result = TypeVar("Result")


def fill_result(kind: type[Result], /, *sources: object, **given: object) -> Result:
    """An object of `kind`: from `given`, else from attributes of the first of `sources` that has them.

    Objects, lists and dicts inside are converted by the types of `kind`.
    """
    return kind(
        **{
            name: _converted(hint, given[name] if name in given else _attribute(sources, name, hint))
            for name, hint in _hints(cast("Any", kind)).items()
        }
    )


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
    return get_type_hints(kind, include_extras=True)


def _attribute(sources: tuple[object, ...], name: str, hint: Any) -> Any:
    (path,) = getattr(hint, "__metadata__", (name,))
    source = next((one for one in sources if hasattr(one, path.partition(".")[0])), sources[0])
    return attrgetter(path)(source)


def _converted(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _converted(arguments[0], value)
    if origin in (Union, UnionType):
        return _converted(next(one for one in arguments if one is not type(None)), value)
    if origin is list:
        return [_converted(arguments[0], one) for one in value]
    if origin is dict:
        return {key: _converted(arguments[1], one) for key, one in value.items()}
    if is_dataclass(hint) and isinstance(hint, type) and not isinstance(value, hint):
        return fill_result(hint, value)
    return value
