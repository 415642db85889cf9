"""The file that holds a machine's profile: JSON with every key, read strictly, written whole.

Owns the file's form: exactly the fields of MachineProfile and what it is made of, and its schema. Where the
file lies is the caller's business.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ernie_local.errors import ErnieLocalError, InputUnreadable, ModelUnusable
from ernie_local.planner.profile import MachineProfile
from ernie_local.strict_json import parse_json_object, show
from ernie_local.whole_file import written_whole

SCHEMA = "ernie-local.machine/1"
_LARGEST_FILE = 1 << 20
_LARGEST_NUMBER = 1 << 60
_LONGEST_TEXT = 200


class _Wrong(ValueError):
    """What in the file is wrong, in one line."""


def write_profile(path: Path, profile: MachineProfile) -> None:
    """Write the file, whole or not at all, and its folder; ErnieLocalError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ErnieLocalError(
            f"{path.parent} cannot be made for the machine's profile",
            error.strerror or str(error),
            "run `ernie-local bench --no-save`, or make the folder",
        ) from error
    text = json.dumps(profile_to_json(profile), indent=1, allow_nan=False) + "\n"
    with written_whole(path, "the machine's profile") as file:
        file.write(text.encode())


def profile_to_json(profile: MachineProfile) -> dict[str, object]:
    """The object that the file holds."""
    return {"schema": SCHEMA, **dataclasses.asdict(profile)}


def read_profile(path: Path) -> MachineProfile | None:
    """What was stored; None if there is no such file. InputUnreadable for one that is no profile of ours."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    try:
        fields = parse_json_object(raw, path.name)
        schema = fields.pop("schema", None)
        if schema != SCHEMA:
            raise _Wrong(f"schema is {show(schema)}, not {SCHEMA}")
        profile = _read(MachineProfile, fields, "the file")
    except ModelUnusable as error:
        raise _unusable(path, error.why) from error
    except _Wrong as error:
        raise _unusable(path, str(error)) from error
    assert isinstance(profile, MachineProfile)
    return profile


def _read(kind: Any, value: object, where: str) -> object:
    """`value` as the type of a field says; `where` names it in the _Wrong."""
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, value, where)
    if get_origin(kind) is UnionType:
        inner = next(one for one in get_args(kind) if one is not type(None))
        return None if value is None else _read(inner, value, where)
    if get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            raise _Wrong(f"{where} is {show(value)}, an object is expected")
        inner = get_args(kind)[1]
        return {name: _read(inner, one, f"{where}.{name[:_LONGEST_TEXT]}") for name, one in value.items()}
    if kind is str:
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_TEXT or not value.isprintable():
            raise _Wrong(f"{where} is {show(value)}, a line of text is expected")
        return value
    return _read_number(kind, value, where)


def _read_record(kind: Any, value: object, where: str) -> object:
    hints = get_type_hints(kind)
    if not isinstance(value, dict):
        raise _Wrong(f"{where} is {show(value)}, an object is expected")
    unknown = next((name for name in value if name not in hints), None)
    if unknown is not None:
        raise _Wrong(f"{where} has the unknown key {show(unknown)}")
    lacking = next((name for name in hints if name not in value), None)
    if lacking is not None:
        raise _Wrong(f"{where} lacks the key {lacking}")
    return kind(**{name: _read(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


def _read_number(kind: Any, value: object, where: str) -> float:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise _Wrong(f"{where} is {show(value)}, a number is expected")
    if not 0 <= value <= _LARGEST_NUMBER or not math.isfinite(value):
        raise _Wrong(f"{where} is {show(value)}, outside of 0 to {_LARGEST_NUMBER}")
    is_rate = where.endswith("_per_second") or ".format_rates." in where
    if is_rate and value == 0:  # something is divided by each of them
        raise _Wrong(f"{where} is 0, a rate is above that")
    return kind(value) if kind is float else value


def _unusable(path: Path, reason: str) -> InputUnreadable:
    return InputUnreadable(
        f"{path} is no profile of a machine that this version can read",
        reason,
        "run `ernie-local bench`, which writes it anew",
    )
