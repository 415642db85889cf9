"""Draws JSON schemas of the subset that can be followed, and writes answers at random within a form."""

from __future__ import annotations

from datetime import datetime, time
from functools import partial
from typing import Any

import jsonschema
import torch
from hypothesis import strategies as st

from ernie_local.sampling import Sampler, SamplingOptions
from ernie_local.structured import AnswerForm
from ernie_local.structured.guide import AnswerGuide
from ernie_local.text.tokenizer import ErnieTokenizer

Raw = dict[str, Any]
VALIDATOR = jsonschema.Draft202012Validator
FORMAT_CHECKER = jsonschema.FormatChecker()


def _has_zone(value: object, kind: type[time | datetime]) -> bool:
    return not isinstance(value, str) or kind.fromisoformat(value).tzinfo is not None


FORMAT_CHECKER.checks("time", raises=ValueError)(partial(_has_zone, kind=time))
FORMAT_CHECKER.checks("date-time", raises=ValueError)(partial(_has_zone, kind=datetime))
PATTERNS = (
    "^[A-Z]{2}[0-9]{4}$",
    "^(EUR|USD) [0-9]+$",
    "ab?c",
    "^\\d{3}-\\d{2}$",
    "^[^a]{1,5}$",
    "é|ü",
    "^\\w+\\s\\w+$",
)
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "hostname")
# Names and values that need escapes, many bytes, or look like tags.
NAMES = (
    "a",
    "b",
    "price",
    "Größe",
    "naïve key",
    'q"uote',
    "back\\slash",
    "日本",
    "😀",
    "new\nline",
    "<think>",
    "-",
)
_texts = st.sampled_from(
    ["", "x", "paid", "</think>", "<response>", 'say "hi"', "日本語", "a\tb", "😀😀", "\\", "/"]
)
_small = st.integers(-50, 50)


def _some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Raw]:
    return st.fixed_dictionaries({}, optional=keys)


def _ordered(low: str, high: str, bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Raw]:
    pairs = st.tuples(bounds, bounds).map(sorted)
    return st.one_of(
        st.just({}),
        bounds.map(lambda bound: {low: bound}),
        bounds.map(lambda bound: {high: bound}),
        pairs.map(lambda pair: {low: pair[0], high: pair[1]}),
    )


def _joined(*parts: st.SearchStrategy[Raw]) -> st.SearchStrategy[Raw]:
    return st.tuples(*parts).map(lambda drawn: {key: one for part in drawn for key, one in part.items()})


def scalars() -> st.SearchStrategy[Raw]:
    """Schemas of single values."""
    return st.one_of(
        _joined(st.just({"type": "string"}), _ordered("minLength", "maxLength", st.integers(0, 12))),
        st.sampled_from(PATTERNS).map(lambda one: {"type": "string", "pattern": one}),
        st.sampled_from(FORMATS).map(lambda one: {"type": "string", "format": one}),
        _joined(st.just({"type": "integer"}), _ordered("minimum", "maximum", _small)),
        st.integers(2, 9).map(lambda step: {"type": "integer", "multipleOf": step}),
        _joined(st.just({"type": "number"}), _ordered("minimum", "maximum", _small.map(lambda one: one / 4))),
        _small.map(lambda one: {"type": "number", "exclusiveMinimum": one, "exclusiveMaximum": one + 1}),
        st.sampled_from(["boolean", "null"]).map(lambda kind: {"type": kind}),
        st.lists(st.one_of(_texts, _small, st.booleans(), st.none()), min_size=1, max_size=5).map(
            lambda values: {"enum": values}
        ),
        st.one_of(_texts, _small, st.just([1, {"k": None}])).map(lambda value: {"const": value}),
        st.just({"type": ["string", "null"], "maxLength": 8}),
        st.just({"type": ["integer", "null", "boolean"], "minimum": 3}),
    )


def _objects(inner: st.SearchStrategy[Raw]) -> st.SearchStrategy[Raw]:
    @st.composite
    def draw_object(draw: st.DrawFn) -> Raw:
        properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=4))
        schema: Raw = {"type": "object", "properties": properties}
        schema["required"] = [name for name in properties if draw(st.booleans())]
        rest = draw(st.one_of(st.none(), st.just(False), inner))
        return schema if rest is None else schema | {"additionalProperties": rest}

    return draw_object()


def _joins(inner: st.SearchStrategy[Raw]) -> st.SearchStrategy[Raw]:
    """Objects in parts, which stand side by side and in branches; numbers and texts with bounds in parts."""

    @st.composite
    def draw_parts(draw: st.DrawFn) -> Raw:
        drawn = draw(st.dictionaries(st.sampled_from(NAMES), inner, min_size=3, max_size=6))
        places = {name: draw(st.integers(0, 2)) for name in drawn}
        parts: list[Raw] = [
            {"properties": (here := {name: one for name, one in drawn.items() if places[name] == place}),
             "required": [name for name in here if draw(st.booleans())]}
            for place in range(3)
        ]  # fmt: skip
        joined: list[Raw] = [
            {"type": "object", "allOf": parts},
            {"type": "object", **parts[0], "anyOf": parts[1:]},
            {"allOf": [{"type": "object", **parts[0]}, {"anyOf": parts[1:]}]},
        ]
        return draw(st.sampled_from(joined))

    bounds = _small.map(lambda low: {"allOf": [{"minimum": low}, {"type": "number"}, {"maximum": low + 3.5}]})
    lengths = st.integers(0, 5).map(
        lambda low: {"type": "string", "minLength": low, "allOf": [{"maxLength": low + 2}, {}]}
    )
    return st.one_of(draw_parts(), draw_parts(), bounds, lengths)


def _arrays(inner: st.SearchStrategy[Raw]) -> st.SearchStrategy[Raw]:
    return st.one_of(
        _joined(
            inner.map(lambda items: {"type": "array", "items": items}),
            _ordered("minItems", "maxItems", st.integers(0, 3)),
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda first: {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}
        ),
    )


def schemas() -> st.SearchStrategy[Raw]:
    """Schemas of types, bounds, patterns, formats, enums, lists, objects, anyOf, allOf, $defs and $ref."""
    whole = st.recursive(
        scalars(),
        lambda inner: st.one_of(
            _objects(inner),
            _arrays(inner),
            _joins(inner),
            st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        ),
        max_leaves=8,
    )
    tree = whole.map(
        lambda leaf: {
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {
                        "leaf": leaf,
                        "branches": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/tree"}},
                    },
                    "required": ["leaf"],
                }
            },
            "$ref": "#/$defs/tree",
        }
    )
    return st.one_of(whole, whole, whole, tree)


def random_answer(
    form: AnswerForm,
    tokenizer: ErnieTokenizer,
    stop_ids: frozenset[int],
    seed: int,
    temperature: float = 1.0,
    most_tokens: int = 3000,
) -> tuple[str | None, AnswerGuide]:
    """What a model of random logits writes in a form; None for an answer that does not end in time.

    It is fond of what ends texts, lists and objects, or most answers would be too long.
    """
    guide = AnswerGuide(form, tokenizer, stop_ids)
    sampler = Sampler(SamplingOptions(temperature=temperature, seed=seed, top_k=40, repetition_penalty=1.1))
    random = torch.Generator().manual_seed(seed)
    closing = [token_id for text in '"]},' if (token_id := tokenizer.id_of(text)) is not None]
    written: list[int] = []
    while len(written) < most_tokens and not guide.is_complete:
        forced = guide.forced_ids()
        if forced:
            guide.take_forced(forced)
            written += forced
            continue
        logits = torch.randn(tokenizer.vocab_size, generator=random) * 3
        logits[closing] += 3
        token_id = sampler.pick(guide.allowed(logits), set(written))
        guide.take(token_id)
        if token_id in stop_ids:
            break
        written.append(token_id)
    else:
        if not guide.is_complete:
            return None, guide
    return b"".join(map(tokenizer.token_bytes, written)).decode(), guide
