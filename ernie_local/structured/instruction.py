"""Writes what a model is told of the form of its answer, to stand behind the question.

A schema is told as an outline of the JSON, which takes fewer tokens than the schema and reads more easily.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ernie_local.structured.joins import says_more_than_kind
from ernie_local.structured.schema import Schema, resolve

_MOST_VALUES = 30  # of an enum that are listed


def schema_instruction(schema: Schema) -> str:
    """For JSON of a schema that `read_schema` gave."""
    return f"Answer in JSON of this form: {_outline(schema, schema, frozenset())}"


def regex_instruction(pattern: str) -> str:
    """For text that matches a regular expression."""
    return f"Answer with nothing but text that matches this regular expression: {pattern}"


def choices_instruction(choices: Sequence[str]) -> str:
    """For one of several texts."""
    return f"Answer with nothing but one of these: {_listed(choices, ', ')}"


def _outline(part: Any, root: Schema, around: frozenset[str]) -> str:
    """The JSON of a schema in one line. around: the references that it stands in."""
    if not isinstance(part, dict):
        return "any JSON"
    words = _words(part, root, around)
    description = "" if part is root else part.get("description", "")
    return f"{words} ({description})" if description else words


def _words(part: Schema, root: Schema, around: frozenset[str]) -> str:
    if "enum" in part or "const" in part:
        return _listed(map(_json, part.get("enum", [part.get("const")])), " | ")
    joined = [_referred(part["$ref"], root, around)] if "$ref" in part else []
    for key, joint in (("anyOf", " | "), ("oneOf", " | "), ("allOf", " & ")):
        if key in part:
            joined.append(joint.join(_outline(one, root, around) for one in part[key]))
    if joined and not says_more_than_kind(part):
        return " & ".join(joined)
    kinds = _types(part)
    itself = " | ".join(_of_type(kind, part, root, around) for kind in kinds) or "any JSON"
    return " & ".join([itself, *(f"({one})" for one in joined)])


def _types(part: Schema) -> list[str]:
    """The types of a schema; where it names none but has properties, those of an object."""
    types = part.get("type", ["object"] if "properties" in part else [])
    return [types] if isinstance(types, str) else types


def _referred(reference: str, root: Schema, around: frozenset[str]) -> str:
    if reference in around:
        return f"again {reference.rpartition('/')[2] or 'the whole'}"
    return _outline(resolve(reference, root), root, around | {reference})


def _of_type(kind: str, part: Schema, root: Schema, around: frozenset[str]) -> str:
    if kind == "array" and ("items" in part or "prefixItems" in part):
        first = [_outline(one, root, around) for one in part.get("prefixItems", ())]
        rest = [_outline(part["items"], root, around), "..."] if part.get("items") else []
        return f"[{', '.join(first + rest)}]"
    if kind == "object" and "properties" in part:
        needed = part.get("required", ())
        fields = [
            f"{_json(name)}{'' if name in needed else '?'}: {_outline(one, root, around)}"
            for name, one in part["properties"].items()
        ]
        return f"{{{', '.join(fields)}}}"
    if kind == "string":
        pattern = f" like /{part['pattern']}/" if "pattern" in part else ""
        format_name = part.get("format", "string")
        return ("date YYYY-MM-DD" if format_name == "date" else format_name) + pattern
    bounds = _BOUND_WORDS.items() if kind in ("number", "integer") else ()
    return " ".join([kind, *(f"{word} {part[key]}" for key, word in bounds if key in part)])


_BOUND_WORDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _listed(values: Iterable[str], joint: str) -> str:
    all_values = list(values)
    more = len(all_values) - _MOST_VALUES
    shown = joint.join(all_values[:_MOST_VALUES])
    return f"{shown}{joint}... ({more} more)" if more > 0 else shown


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
