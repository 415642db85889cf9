"""Writes forms of answers as grammars of llguidance, which decides token by token what may come next.

JSON is written as `json.dumps` writes it, one space behind commas and colons and no other whitespace, so that
an answer cannot go on in blanks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ernie_local.errors import UsageError, parameter
from ernie_local.strict_json import show
from ernie_local.structured.schema import (
    ANNOTATIONS,
    LARGEST_NUMBER,
    SMALLEST_STEP,
    Schema,
    children,
    refused,
)

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from llguidance._lib import JsonCompileOptions

_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # Without \u: it could write any letter, so that a name that is taken came a second time.
    "json_allowed_escapes": 'nrbtf\\"',
}
# What the engine's own formats leave open: days that are not there, and what RFC 3339 allows and Python does
# not read, such as years before 1000, small letters, leap seconds, and fractions without end.
_LEAP_YEAR = r"([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DAY = rf"([1-9]\d{{3}}-((0[13-9]|1[0-2])-\d\d|02-([01]\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
_CLOCK = r"\d\d:\d\d:[0-5]\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)"
_FORMATS = {"date": f"^{_DAY}$", "time": f"^{_CLOCK}$", "date-time": f"^{_DAY}T{_CLOCK}$"}
# Definitions: of every value, and of the whole schema, where references lead to.
_ANY, _ROOT = "ernie-local.any", "ernie-local.root"


def schema_grammar(schema: Schema) -> str:
    """The grammar of a schema that `read_schema` gave; UsageError for what the engine does not follow."""
    root = _for_engine(schema)
    for path, part in _parts_alone("$", schema):
        if part.keys() - ANNOTATIONS <= {"type"}:
            continue
        # Also where the whole could do without this part: it is there because someone wants it.
        fault = _fault(_compiled(_for_engine(part), root))
        if fault:
            raise refused(path, fault)
    return _compiled(root, root)


def regex_grammar(pattern: str) -> str:
    """The grammar of a regular expression that the whole answer has to match; UsageError for a wrong one.

    Its classes, such as `\\d`, are of ASCII, as in JSON schemas.
    """
    # It always has to match as a whole, and the engine has no anchors.
    whole = pattern.removeprefix("^")
    without_end = whole.removesuffix("$")
    num_backslashes = len(without_end) - len(without_end.rstrip("\\"))
    _check_letters("regex", pattern)
    grammar = _regex(whole if num_backslashes % 2 else without_end)
    fault = _fault(grammar) if pattern else "it is empty, and an answer is not"
    if fault:
        raise UsageError(
            f"{parameter('regex', pattern)} cannot be used",
            fault.rpartition("error: ")[2].partition(" 1 | ")[0],  # without the engine's drawing of the place
            f"{parameter('regex', '[0-9]+ (EUR|USD)')}; lookaround and backreferences cannot be used",
        )
    return grammar


def choices_grammar(choices: Sequence[str]) -> str:
    """The grammar of several texts, of which the answer is one."""
    for choice in choices:
        _check_letters("choice", choice)
    # As one expression: the engine follows at most 2,000 alternatives of a rule.
    grammar = _regex("|".join(map(re.escape, choices)))
    fault = _fault(grammar)
    if fault:
        raise UsageError(f"{len(choices)} choices cannot be used", fault, parameter("choice", "yes,no"))
    return grammar


def _check_letters(name: str, text: str) -> None:
    bad = next((letter for letter in text if 0xD800 <= ord(letter) < 0xE000), None)
    if bad is not None:
        raise UsageError(
            f"{parameter(name)} with {show(text)} cannot be used",
            f"U+{ord(bad):04X} is half of a surrogate pair and has no UTF-8 form",
            "remove that character, or pass the text in UTF-8",
        )


def _regex(pattern: str) -> str:
    from llguidance import LLMatcher, regex_to_lark

    grammar: str = LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(pattern, use_ascii='dws')}/")
    return grammar


def _compiled(part: Schema, root: Schema) -> str:
    """The grammar of a schema in `root`, or of all of it; both as `_for_engine` gave them."""
    from llguidance import LLMatcher

    text = json.dumps(part)
    definitions = {_ANY: _any_value()}
    if f"#/$defs/{_ROOT}" in text:  # else it would be read for each of its parts
        definitions[_ROOT] = root
    text = json.dumps({**part, "$defs": definitions})
    grammar: str = LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
    return grammar


def _fault(grammar: str) -> str:
    """What the engine says against a grammar, in one line; "" for nothing."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0)
    if not matcher.is_error() and not any(matcher.compute_bitmask()):
        return "no answer would fit it"
    fault = " ".join(str(matcher.get_error()).split())[:200]
    return "no answer would fit it" if fault.startswith("NoExtension") else fault


@cache
def _byte_tokenizer() -> LLTokenizer:
    """One token for each byte: some faults show only when an answer begins."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=_Bytes.eos_token_id)


class _Bytes:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None
    eos_token_id = 256
    special_token_ids: ClassVar = [256]
    tokens: ClassVar = [*(bytes([byte]) for byte in range(256)), b"</s>"]

    def __call__(self, text: str | bytes) -> list[int]:
        """The bytes."""
        return list(text if isinstance(text, bytes) else text.encode())


def _parts_alone(path: str, part: Any) -> Iterator[tuple[str, Schema]]:
    """The schemas that mean the same where they stand alone, with their places, the innermost first."""
    for child_path, child in children(path, part):
        if not child_path.startswith(tuple(f"{path}.{key}[" for key in ("anyOf", "oneOf", "allOf"))):
            yield from _parts_alone(child_path, child)
    if isinstance(part, dict):
        yield path, part


def _for_engine(schema: Any, *, is_joined: bool = False) -> Any:
    """The schema with ends to its numbers and objects, without annotations.

    is_joined: whether other schemas hold for the same value.
    """
    if isinstance(schema, bool):
        return _any_reference() if schema else schema
    own = {key: value for key, value in schema.items() if key not in ANNOTATIONS and not key.startswith("x-")}
    own.pop("$id", None)
    if "$ref" in own:
        own["$ref"] = f"#/$defs/{_ROOT}{own['$ref'].removeprefix('#')}"
    joins = [key for key in ("anyOf", "oneOf", "allOf") if key in own]
    # One branch alone says all that there is to say.
    is_joined |= len(own.get("allOf", ())) > 1 or (bool(joins) and "properties" in own)
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if key in own:
            own[key] = {name: _for_engine(one) for name, one in own[key].items()}
    for key in joins:
        own[key] = [_for_engine(one, is_joined=is_joined) for one in own[key]]
    for key in ("items", "additionalProperties"):
        # What is joined cannot refer to the definition of any value: it would be joined with itself.
        if key in own and not (is_joined and own[key] is True):
            own[key] = _for_engine(own[key])
    if "prefixItems" in own:
        own["prefixItems"] = [_for_engine(one) for one in own["prefixItems"]]
    if own.get("format") in _FORMATS:
        # Beside a pattern that may be there.
        own["allOf"] = [*own.get("allOf", ()), {"pattern": _FORMATS[own["format"]]}]
    if not joins and not {"$ref", "enum", "const"} & own.keys():
        _end_numbers(own, is_joined)
        if not is_joined:  # a part cannot say that the whole has no other properties
            _say_rest(own)
    return own


def _end_numbers(schema: Schema, is_joined: bool) -> None:
    """Bound numbers on both sides, and their digits: without, a model may write digits without end."""
    kinds = _types(schema, [] if is_joined else ["number"])
    if "number" in kinds:
        schema.setdefault("multipleOf", SMALLEST_STEP)
    if "number" in kinds or "integer" in kinds:
        schema.setdefault("minimum", -LARGEST_NUMBER)
        schema.setdefault("maximum", LARGEST_NUMBER)


def _say_rest(schema: Schema) -> None:
    """Say what other properties and items may be: no properties beside those that are listed."""
    kinds = _types(schema, ["object", "array"])
    if "object" in kinds:
        schema.setdefault("additionalProperties", False if "properties" in schema else _any_reference())
    if "array" in kinds:
        schema.setdefault("items", _any_reference())


def _types(schema: Schema, default: list[str]) -> list[str]:
    types = schema.get("type", default)
    return [types] if isinstance(types, str) else types


def _any_reference() -> Schema:
    return {"$ref": f"#/$defs/{_ANY}"}


def _any_value() -> Schema:
    number: Schema = {"type": "number"}
    _end_numbers(number, is_joined=False)
    return {
        "anyOf": [
            number,
            {"type": ["null", "boolean", "string"]},
            {"type": "array", "items": _any_reference()},
            {"type": "object", "additionalProperties": _any_reference()},
        ]
    }
