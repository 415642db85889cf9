"""Writes what a model is told of the form of its answer, to stand behind the question."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ernie_local.structured.schema import Schema

_MOST_VALUES = 30  # of an enum that are listed


def schema_instruction(schema: Schema) -> str:
    """For JSON of a schema."""
    written = json.dumps(_shortened(schema), ensure_ascii=False)
    return f"Answer in JSON that fits this schema: {written}"


def regex_instruction(pattern: str) -> str:
    """For text that matches a regular expression."""
    return f"Answer with text that matches this regular expression, and nothing else: {pattern}"


def choices_instruction(choices: Sequence[str]) -> str:
    """For one of several texts."""
    if len(choices) > _MOST_VALUES:
        return "Answer with one of the given choices, and nothing else."
    return f"Answer with one of these, and nothing else: {', '.join(choices)}"


def _shortened(schema: Schema) -> Schema:
    return schema
