"""Writes forms of answers as grammars of llguidance, which decides token by token what may come next.

JSON is written as `json.dumps` writes it, one space behind commas and colons and no other whitespace, so that
an answer cannot go on in blanks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ernie_local.errors import UsageError, parameter
from ernie_local.structured.schema import (
    ANNOTATIONS,
    LARGEST_NUMBER,
    SMALLEST_STEP,
    Schema,
    children,
    refused,
)

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # Without \u: it could write any letter, so that a name that is taken came a second time.
    "json_allowed_escapes": 'nrbtf\\"',
}
_ANY = "any value"  # the name of a definition that allows everything


def schema_grammar(schema: Schema) -> str:
    """The grammar of a schema that `read_schema` gave; UsageError for what the engine does not follow."""
    grammar = _compiled(schema)
    fault = _fault(grammar)
    if fault:
        raise refused(*_deepest_fault("$", schema, schema, fault))
    return grammar


def regex_grammar(pattern: str) -> str:
    """The grammar of a regular expression that the whole answer has to match; UsageError for a wrong one."""
    from llguidance import LLMatcher

    # It always has to match as a whole, and the engine has no anchors.
    whole = pattern.removeprefix("^")
    without_end = whole.removesuffix("$")
    num_backslashes = len(without_end) - len(without_end.rstrip("\\"))
    grammar: str = LLMatcher.grammar_from_regex(whole if num_backslashes % 2 else without_end)
    fault = _fault(grammar)
    if fault:
        raise UsageError(
            f"{parameter('regex', pattern)} cannot be used",
            fault,
            f"{parameter('regex', '[0-9]+ (EUR|USD)')}; lookaround and backreferences cannot be used",
        )
    return grammar


def choices_grammar(choices: Sequence[str]) -> str:
    """The grammar of several texts, of which the answer is one."""
    from llguidance import LLMatcher

    grammar: str = LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))
    fault = _fault(grammar)
    if fault:
        raise UsageError(f"{len(choices)} choices cannot be used", fault, parameter("choices", "yes,no"))
    return grammar


def _compiled(schema: Schema) -> str:
    from llguidance import LLMatcher

    followed = _for_engine(schema, is_closed=True)
    followed.setdefault("$defs", {})[_ANY] = _any_value()
    grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(followed), overrides=_OPTIONS)
    return grammar


def _fault(grammar: str) -> str:
    """What the engine says against a grammar, in one line; "" for nothing."""
    from llguidance import LLMatcher

    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(" ".join(messages).split())[:200] if is_wrong else ""


def _deepest_fault(path: str, part: Schema, root: Schema, fault: str) -> tuple[str, str]:
    """Place and words of a fault in the smallest schema that has it alone."""
    definitions: Schema = {key: root[key] for key in ("$defs", "definitions") if key in root}
    for child_path, child in children(path, part):
        if isinstance(child, dict) and (found := _fault(_compiled({**definitions, **child}))):
            return _deepest_fault(child_path, child, root, found)
    return path, fault


def _for_engine(schema: Any, *, is_closed: bool) -> Any:
    """The schema with ends to its numbers and objects, without annotations.

    is_closed: whether objects that say nothing of other properties than theirs have none.
    """
    if isinstance(schema, bool):
        return _any_reference() if schema else schema
    own = {key: value for key, value in schema.items() if key not in ANNOTATIONS and not key.startswith("x-")}
    own.pop("$id", None)
    # What is joined says of one object which properties it has, so that no part of it can say: no others.
    joined = len(own.get("allOf", ())) > 1 or (
        "properties" in own and any(key in own for key in ("anyOf", "oneOf", "allOf"))
    )
    is_closed = is_closed and not joined
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if key in own:
            own[key] = {name: _for_engine(one, is_closed=True) for name, one in own[key].items()}
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in own:
            own[key] = [_for_engine(one, is_closed=is_closed or key == "prefixItems") for one in own[key]]
    for key in ("items", "additionalProperties"):
        if key in own:
            own[key] = _for_engine(own[key], is_closed=True)
    if not {"$ref", "enum", "const"} & own.keys():
        _end_numbers(own)
        _say_rest(own, is_closed)
    return own


def _end_numbers(schema: Schema) -> None:
    """Bound numbers on both sides, and their digits: without, a model may write digits without end."""
    if schema.get("type") != "integer":
        schema.setdefault("multipleOf", SMALLEST_STEP)
    schema.setdefault("minimum", -LARGEST_NUMBER)
    schema.setdefault("maximum", LARGEST_NUMBER)


def _say_rest(schema: Schema, is_closed: bool) -> None:
    """Say what other properties and items may be."""
    is_open = not is_closed or "properties" not in schema
    schema.setdefault("additionalProperties", _any_reference() if is_open else False)
    schema.setdefault("items", _any_reference())


def _any_reference() -> Schema:
    return {"$ref": f"#/$defs/{_ANY}"}


def _any_value() -> Schema:
    number: Schema = {"type": "number"}
    _end_numbers(number)
    return {
        "anyOf": [
            number,
            {"type": ["null", "boolean", "string"]},
            {"type": "array", "items": _any_reference()},
            {"type": "object", "additionalProperties": _any_reference()},
        ]
    }
