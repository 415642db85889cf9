"""Reads JSON files that may be damaged or made to harm, and shows JSON values in messages.

Double keys, NaN, too large files and too deep nesting are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from ernie_local.errors import ModelUnusable
from ernie_local.files import read_plain

_SHOWN_CHARACTERS = 120


def read_json_object(path: Path, limit_bytes: int = 16 << 20) -> dict[str, object]:
    """The JSON object in the file `path`; ModelUnusable if it is missing, too large, or no such thing."""
    try:
        raw = read_plain(path, limit_bytes)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    return parse_json_object(raw, str(path))


def parse_json_object(raw: bytes, where: str) -> dict[str, object]:
    """The object in the UTF-8 JSON text `raw`; `where` names its source in the ModelUnusable."""
    if raw.startswith(b"version https://git-lfs"):
        raise git_lfs_pointer(where)
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object_without_doubles, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise _not_json(where, "its values are nested too deeply") from error
    except ValueError as error:  # also JSONDecodeError, UnicodeDecodeError and over-long integers
        raise _not_json(where, str(error)) from error
    if not isinstance(value, dict):
        raise _not_json(where, f"it holds {show(value)} where an object {{...}} is expected")
    return value


def show(value: object) -> str:
    """`value` as escaped ASCII text for a message, cut to a length that fits a terminal."""
    if isinstance(value, str):
        value = value[:_SHOWN_CHARACTERS] + "..." if len(value) > _SHOWN_CHARACTERS else value
        return ascii(value)
    if isinstance(value, dict | list):
        # Only the size: printing all of it could take very long.
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return ascii(value)


def git_lfs_pointer(where: str) -> ModelUnusable:
    """The error for a git-lfs pointer that lies where the file itself should be."""
    return ModelUnusable(
        f"{where} is a git-lfs pointer, not the file itself",
        "the repository was cloned without git-lfs, so the large files were left on the server",
        "run 'git lfs pull' in that directory, or use hf:org/name to download the model",
    )


def _object_without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {show(key)} stands twice in one object")
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unreadable(path: Path, reason: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path} cannot be read",
        reason,
        "check the path and its permissions, or download the model again",
    )


def _not_json(where: str, reason: str) -> ModelUnusable:
    return ModelUnusable(
        f"{where} is not valid JSON",
        reason,
        "download the file again, or name another model directory",
    )
