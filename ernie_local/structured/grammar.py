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
from ernie_local.structured.joins import BRANCH_KEYS, DEFINITION_KEYS, Neighbours, says_more_than_kind
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
_COMMON_DAY = (
    r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
)
_LIMIT_WORDS = ("too big", "too large", "limit for this grammar")  # as the engine says that something is full
DAY_PATTERN = rf"([1-9]\d{{3}}-{_COMMON_DAY}|{_LEAP_YEAR}-02-29)"
_CLOCK = r"\d\d:\d\d:[0-5]\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)"
_FORMATS = {"date": f"^{DAY_PATTERN}$", "time": f"^{_CLOCK}$", "date-time": f"^{DAY_PATTERN}T{_CLOCK}$"}
# Definitions: of every value, and of the whole schema, where references lead to.
_ANY, _ROOT = "ernie-local.any", "ernie-local.root"


def schema_grammar(schema: Schema) -> str:
    """The grammar of a schema that `read_schema` gave; UsageError for what the engine does not follow."""
    alone = Neighbours(schema)
    root = _for_engine(schema, alone)
    for path, part in _parts_alone("$", schema):
        if part.keys() - ANNOTATIONS <= {"type"}:
            continue
        # Also where the whole could do without this part: it is there because someone wants it.
        fault = _fault(_compiled(_for_engine(part, alone), root))
        if fault:
            raise _unusable_part(path, fault)
    return _compiled(root, root)


def _unusable_part(path: str, fault: str) -> UsageError:
    if any(words in fault for words in _LIMIT_WORDS):
        hint = "fewer fields in one schema, shorter patterns and enums, or smaller bounds of lengths"
        return refused(path, f"it is too large for the engine of grammars: {fault}", hint)
    return refused(path, fault)


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
        if not child_path.startswith(tuple(f"{path}.{key}[" for key in BRANCH_KEYS)):
            yield from _parts_alone(child_path, child)
    if isinstance(part, dict):
        yield path, part


def _for_engine(schema: Any, near: Neighbours) -> Any:
    """The schema with ends to its numbers and objects, without annotations. near: what else holds for its
    values.
    """
    if schema is True and not near.are_there:
        return _any_reference()
    if schema is False:
        return False
    own = {} if schema is True else _rules(schema)
    reference = own.get("$ref")
    if reference is not None and (near.are_there or says_more_than_kind(own)):
        # The engine joins what a reference leads to only as it stands there, closed.
        del own["$ref"]
        if not own.keys() - DEFINITION_KEYS:
            return _for_engine(*near.follow(reference))
        own["allOf"] = [{"$ref": reference}, *own.get("allOf", ())]
    elif reference is not None:
        own["$ref"] = f"#/$defs/{_ROOT}{reference.removeprefix('#')}"
    beside = _convert_branches(own, near)
    _convert_members(own, beside)
    has_branches = any(key in own for key in BRANCH_KEYS)
    if own.get("format") in _FORMATS:
        # Beside a pattern that may be there.
        own["allOf"] = [*own.get("allOf", ()), {"pattern": _FORMATS[own["format"]]}]
    if not {"$ref", "enum", "const"} & own.keys() and (says_more_than_kind(own) or not has_branches):
        _end_numbers(own, beside)
        _say_rest(own, beside)
    return own


def _convert_members(own: Schema, beside: Neighbours) -> None:
    """Convert the schemas of properties and items, and the definitions, in place."""
    alone = beside.alone()
    for key in own.keys() & {"patternProperties", *DEFINITION_KEYS}:
        own[key] = {name: _for_engine(one, alone) for name, one in own[key].items()}
    if "properties" in own:
        own["properties"] = {
            name: _for_engine(one, beside.of("properties", name)) for name, one in own["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        # What is joined cannot refer to the definition of any value: it would be joined with itself.
        if key in own and not (beside.are_there and own[key] is True):
            own[key] = _for_engine(own[key], beside.of(key) if key == "items" else alone)
    if "prefixItems" in own:
        own["prefixItems"] = [_for_engine(one, alone) for one in own["prefixItems"]]


def _rules(schema: Schema) -> Schema:
    """Without what says nothing about values."""
    return {
        key: value
        for key, value in schema.items()
        if key not in ANNOTATIONS and key != "$id" and not key.startswith("x-")
    }


def _convert_branches(own: Schema, near: Neighbours) -> Neighbours:
    """Convert the branches of a schema in place; returns what holds beside the schema without them."""
    itself = {key: value for key, value in own.items() if key not in BRANCH_KEYS}
    all_of = own.get("allOf", [])
    choices = [(key, {key: own[key]}) for key in ("anyOf", "oneOf") if key in own]
    parts = (*([itself] if says_more_than_kind(own) else []), *all_of, *(choice for _, choice in choices))
    first = len(parts) - len(all_of) - len(choices)
    around = [near.around(parts[:index], parts[index + 1 :]) for index in range(len(parts))]
    if all_of:
        own["allOf"] = [_for_engine(one, around[first + index]) for index, one in enumerate(all_of)]
    for index, (key, choice) in enumerate(choices, first + len(all_of)):
        own[key] = [_for_engine(one, around[index]) for one in choice[key]]
    return around[0] if first else near


def _end_numbers(schema: Schema, beside: Neighbours) -> None:
    """Bound numbers on both sides, and their digits: without, a model may write digits without end.

    Of joined schemas the first does so for all: two multipleOf would use up the engine's fuel.
    """
    if beside.before:
        return
    kinds = _types(schema, ["number"])
    if "number" in kinds and not beside.have("multipleOf"):
        schema.setdefault("multipleOf", SMALLEST_STEP)
    if "number" in kinds or "integer" in kinds:
        schema.setdefault("minimum", -LARGEST_NUMBER)
        schema.setdefault("maximum", LARGEST_NUMBER)


def _say_rest(schema: Schema, beside: Neighbours) -> None:
    """Say what other properties and items may be: no properties beside those that are listed."""
    kinds = _types(schema, ["object", "array"])
    says_rest = "additionalProperties" in schema or (beside.are_there and "patternProperties" in schema)
    names = beside.names
    if "object" in kinds and not says_rest and names is not None:
        if "properties" in schema:
            listed_beside = {name: True for name in names if name not in schema["properties"]}
            schema["properties"] = {**schema["properties"], **listed_beside}
            schema["additionalProperties"] = False
        elif not beside.before and not beside.have("properties"):
            schema["additionalProperties"] = _any_reference()
    if "array" in kinds and not beside.before and not beside.have("items"):
        schema.setdefault("items", _any_reference())


def _types(schema: Schema, default: list[str]) -> list[str]:
    types = schema.get("type", default)
    return [types] if isinstance(types, str) else types


def _any_reference() -> Schema:
    return {"$ref": f"#/$defs/{_ANY}"}


def _any_value() -> Schema:
    number: Schema = {"type": "number"}
    _end_numbers(number, Neighbours(number))
    return {
        "anyOf": [
            number,
            {"type": ["null", "boolean", "string"]},
            {"type": "array", "items": _any_reference()},
            {"type": "object", "additionalProperties": _any_reference()},
        ]
    }
