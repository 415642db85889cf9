"""Answers held to a form: by a textbook mask, by jsonschema, and by what json.dumps writes."""

from __future__ import annotations

import gc
import json
import math
import re
import weakref
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from ernie_local.model_files import find_model_files
from ernie_local.structured import AnswerForm
from ernie_local.structured.guide import AnswerGuide
from ernie_local.structured.tokens import vocabulary_of
from ernie_local.text.tokenizer import ErnieTokenizer
from tests.runtime.structured.schemas import (
    FORMAT_CHECKER,
    VALIDATOR,
    Raw,
    random_answer,
    scalars,
    schemas,
)

STOPS = frozenset([2, 4])
NANO = find_model_files("nano").tokenizer
SLOW = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def allowed_ids(guide: AnswerGuide, tokenizer: ErnieTokenizer) -> set[int]:
    logits = guide.allowed(torch.zeros(tokenizer.vocab_size))
    return {token_id for token_id, score in enumerate(logits.tolist()) if score == 0}


@given(schemas(), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0, 5.0]))
@settings(SLOW, max_examples=25)
def test_what_a_model_of_random_logits_writes_fits_the_schema(
    schema: Raw, seed: int, temperature: float
) -> None:
    check_random_answer(schema, seed, temperature)


@pytest.mark.slow
@given(schemas(), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0, 5.0]))
@settings(SLOW, max_examples=1000)
def test_what_a_model_of_random_logits_writes_fits_many_schemas(
    schema: Raw, seed: int, temperature: float
) -> None:
    check_random_answer(schema, seed, temperature)


def check_random_answer(schema: Raw, seed: int, temperature: float) -> None:
    form = AnswerForm.of(schema)
    text, guide = random_answer(form, NANO, STOPS, seed, temperature)
    assume(text is not None)  # it did not end in time
    value, confidence = guide.read(text or "")
    VALIDATOR(schema, format_checker=FORMAT_CHECKER).validate(value)
    is_as_read = not re.search(r"-0|\d\.", text or "")  # Python writes 1.50 as 1.5, and -0 as 0
    assert not is_as_read or json.dumps(value, ensure_ascii=False) == text
    assert all(0 <= share <= 1 + 1e-6 for share in confidence.values())


@given(scalars().flatmap(lambda schema: st.tuples(st.just(schema), from_schema(schema))))
@settings(SLOW, max_examples=60)
def test_what_fits_the_schema_may_be_written(drawn: tuple[Raw, Any]) -> None:
    schema, value = drawn
    assume(is_writable(value))
    listed: Raw = {"type": "array", "items": {"type": "object", "properties": {"a b": schema}}}
    guide = AnswerGuide(AnswerForm.of(listed), NANO, STOPS)
    text = json.dumps([{"a b": value}], ensure_ascii=False)
    ids = NANO.encode_part(text)
    num_fitting = guide._matcher.try_consume_tokens(ids)
    assert (num_fitting, guide.is_complete) == (len(ids), True), NANO.decode(ids[:num_fitting])


def is_writable(value: Any) -> bool:
    """Whether json.dumps writes it as the engine does: no exponents, and no \\u0000."""
    if isinstance(value, str):
        if re.match(r"0\d{3}-", value):  # a year before 1000
            return False
        return not any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in value)
    if isinstance(value, float):
        return value == round(value, 6) and abs(value) < 1e12 and "e" not in repr(value)
    return not isinstance(value, int) or abs(value) < 10**15


PARTS: Raw = {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "null"}}}]}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        # The name "a" in other letters, with a value that it must not have.
        (
            {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
            '{"\\u0061": "x"}',
        ),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"b": 1}'),
        ({"type": "object", "properties": {"a": {}, "b": {}}}, '{"b": 1, "a": 1}'),
        ({"type": "array", "items": {"type": "integer"}}, "[1,2]"),
        ({"type": "array", "items": {"type": "integer"}}, "[1,  2]"),
        ({"type": "number"}, "1e5"),
        ({"type": "number"}, "0.1234567891"),
        ({"type": "object"}, '{"a": 1e999}'),
        ({"type": "string"}, '"\\ud800"'),
        ({"type": "string", "format": "time"}, '"10:29:46z"'),
        ({"type": "string", "format": "date-time"}, '"2026-11-29t10:29:46Z"'),
        ({"type": "string", "format": "date-time"}, '"2026-11-29T23:59:60Z"'),
        ({"type": "string", "format": "date"}, '"2026-02-29"'),
        (
            {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["a"], "type": "object"}]},
            "{}",
        ),
        # Numbers without an end, whose bounds stand in parts.
        ({"type": "number", "allOf": [{"minimum": 0}, {"maximum": 9}]}, "0.1234567891"),
        ({"type": "integer", "minimum": 0, "allOf": [{}, {"minimum": 2}]}, "1" * 20),
        ({"allOf": [{"minimum": 0}, {"$ref": "#/$defs/n"}], "$defs": {"n": {"type": "number"}}}, "1" * 20),
        # Names that no part lists, and that another branch lists.
        (PARTS, '{"a": 1, "b": null, "c": 1}'),
        (
            {**PARTS["allOf"][0], "anyOf": [PARTS["allOf"][1], {"properties": {"c": {}}}]},
            '{"b": null, "c": 1}',
        ),
        (
            {"allOf": [{"$ref": "#/$defs/a"}, {"required": ["a"]}], "$defs": {"a": PARTS["allOf"][0]}},
            '{"b": 1',
        ),
    ],
)
def test_what_is_never_written(schema: Raw, text: str) -> None:
    guide = AnswerGuide(AnswerForm.of(schema), NANO, STOPS)
    ids = NANO.encode_part(text)
    assert guide._matcher.try_consume_tokens(ids) < len(ids)


BASE: Raw = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
MORE: Raw = {"properties": {"b": {"type": "null"}}, "required": ["b"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "allOf": [BASE, MORE]},
        {**BASE, "anyOf": [MORE]},
        {**BASE, "anyOf": [MORE, {"properties": {"c": {"type": "null"}}, "required": ["c"]}]},
        {"allOf": [{"$ref": "#/$defs/base"}, MORE], "$defs": {"base": BASE}},
        {"allOf": [{"properties": {"a": True}}, {"properties": {"a": {}, "b": {}}}], "type": "object"},
        {"allOf": [{"type": "object"}, {"required": ["a"]}]},
        {
            "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"$ref": "#/$defs/b"}}}],
            "$defs": {"base": {"allOf": [{"$ref": "#/$defs/more"}, {}]}, "more": BASE, "b": {"const": None}},
        },
    ],
)
def test_parts_of_one_object_leave_each_other_room(schema: Raw) -> None:
    """None can say alone that the whole has no other properties."""
    guide = AnswerGuide(AnswerForm.of(schema), NANO, STOPS)
    ids = NANO.encode_part('{"a": 1, "b": null}')
    assert guide._matcher.try_consume_tokens(ids) == len(ids)


CHOICES = ["yes", "yesterday", "no", "n", "日本", "日", "😀", "a b", "</think>", "84.84", "84.8"]


def test_only_tokens_on_the_way_to_a_choice_are_allowed(either_tokenizer: ErnieTokenizer) -> None:
    """Whether a token is allowed is told by the letters alone, except where only one way is left."""
    form, tokenizer = AnswerForm.from_choices(CHOICES), either_tokenizer
    random = torch.Generator().manual_seed(1)
    stops = frozenset([2])
    for _ in range(15):
        guide, written = AnswerGuide(form, tokenizer, stops), b""
        while not guide.is_complete:
            forced = guide.forced_ids()
            possible = {
                token_id
                for token_id in range(tokenizer.vocab_size)
                if token_id not in tokenizer.special_ids
                and tokenizer.is_named(token_id)
                and any(one.encode().startswith(written + tokenizer.token_bytes(token_id)) for one in CHOICES)
            }
            if written in [one.encode() for one in CHOICES]:
                possible |= stops
            allowed = allowed_ids(guide, tokenizer)
            assert allowed == set(forced[:1]) if forced else allowed == possible
            assert allowed <= possible
            chosen = sorted(allowed)[int(torch.randint(len(allowed), (), generator=random))]
            guide.take(chosen)
            if chosen in stops:
                break
            written += tokenizer.token_bytes(chosen)
        assert written.decode() in CHOICES


@pytest.mark.parametrize(
    "form",
    [
        AnswerForm.of({"type": "object"}),
        AnswerForm.of({"type": "array", "items": {"type": "string"}}),
        AnswerForm.from_regex("(?s:.*)"),
        AnswerForm.from_regex("[^a]+"),
    ],
)
def test_special_tokens_are_no_text(form: AnswerForm, either_tokenizer: ErnieTokenizer) -> None:
    tokenizer, stops = either_tokenizer, frozenset([2])
    guide = AnswerGuide(form, tokenizer, stops)
    random = torch.Generator().manual_seed(2)
    for _ in range(50):
        if guide.is_complete:
            break
        allowed = allowed_ids(guide, tokenizer)
        assert allowed & tokenizer.special_ids == (stops if guide.is_fulfilled else set())
        going_on = sorted(allowed - stops)
        guide.take(going_on[int(torch.randint(len(going_on), (), generator=random))])


def test_forced_tokens_are_the_only_ones_that_are_allowed() -> None:
    form = AnswerForm.of("vendor, total: number, lines[]: {quantity: integer, paid: boolean}")
    guide, num_forced = AnswerGuide(form, NANO, STOPS), 0
    random = torch.Generator().manual_seed(0)
    while True:
        for token_id in guide.forced_ids():
            assert allowed_ids(guide, NANO) == {token_id}
            guide.take_forced([token_id])
            num_forced += 1
        if guide.is_complete:
            break
        logits = torch.randn(NANO.vocab_size, generator=random)
        logits[[NANO.id_of(text) or 0 for text in '"]}']] += 5
        guide.take(int(guide.allowed(logits).argmax()))
    assert num_forced > 10


def test_numbers_end() -> None:
    """A model that likes digits most."""
    for kind, digits in (("number", 28), ("integer", 19)):
        guide = AnswerGuide(AnswerForm.of({"type": kind}), NANO, STOPS)
        logits = torch.zeros(NANO.vocab_size)
        logits[[NANO.id_of(digit) or 0 for digit in "123456789."]] = 9.0
        text = ""
        while not guide.is_complete:
            token_id = int(guide.allowed(logits).argmax())
            guide.take(token_id)
            if token_id in STOPS:
                break
            text += NANO.decode([token_id])
        assert len(text) <= digits
        json.loads(text)


def test_a_choice_is_as_sure_as_its_tokens_among_the_allowed_ones() -> None:
    """By hand, from softmax over the letters that may come."""
    form = AnswerForm.from_choices(["cat", "cow", "dog", "do"])
    ids = {letter: NANO.id_of(letter) or 0 for letter in "catowdg"}
    guide = AnswerGuide(form, NANO, STOPS)
    random = torch.Generator().manual_seed(3)
    expected = 1.0
    for letter, options in (("d", "cd"), ("o", "o")):
        logits = torch.randn(NANO.vocab_size, generator=random) * 2
        scores = [
            float(logits[token_id].exp())
            for token_id in range(NANO.vocab_size)
            if token_id not in NANO.special_ids
            and NANO.token_bytes(token_id).decode(errors="replace") in options
        ]
        if guide.forced_ids():
            guide.take_forced(guide.forced_ids())
            continue
        guide.allowed(logits)
        guide.take(ids[letter])
        expected *= float(logits[ids[letter]].exp()) / sum(scores)
    logits = torch.randn(NANO.vocab_size, generator=random)
    guide.allowed(logits)
    guide.take(2)  # the end, of which there are two
    letters_g = [i for i in range(NANO.vocab_size) if NANO.token_bytes(i) == b"g"]
    ends = float(logits[2].exp() + logits[4].exp())
    expected *= ends / (ends + sum(float(logits[i].exp()) for i in letters_g))
    value, confidence = guide.read("do")
    assert value == "do"
    assert math.isclose(confidence[""], expected, rel_tol=1e-4)


def test_a_vocabulary_is_prepared_once_and_goes_with_its_tokenizer(tokenizer_directory: Any) -> None:
    tokenizer = ErnieTokenizer.from_directory(tokenizer_directory)
    vocabulary = vocabulary_of(tokenizer, STOPS)
    assert vocabulary_of(tokenizer, frozenset([4, 2])) is vocabulary
    gone = weakref.ref(tokenizer)
    del tokenizer, vocabulary
    gc.collect()
    assert gone() is None


def test_a_huge_enum_and_deep_lists() -> None:
    words = [f"value {index} of {index % 7}" for index in range(5000)]
    text, _ = random_answer(
        AnswerForm.of({"type": "array", "items": {"enum": words}, "minItems": 3}), NANO, STOPS, 1
    )
    assert set(json.loads(text or "")) <= set(words)
    text, _ = random_answer(AnswerForm.from_choices(words), NANO, STOPS, 1)
    assert text in words
    deep: Raw = {"type": "string", "maxLength": 3}
    for _ in range(30):
        deep = {"type": "array", "items": deep, "minItems": 1, "maxItems": 1}
    text, _ = random_answer(AnswerForm.of(deep), NANO, STOPS, 1)
    assert (text or "").startswith("[" * 30)


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("^\\d+$", "42", ["٣", "4a"]),
        ("\\d{2}\\$", "42$", ["42"]),
        ("[A-Z]{2}\\s[é日]+", "AB 日é", ["AB\u00a0日"]),
        ("a|b", "b", ["ab"]),
        ('x/y "z"', 'x/y "z"', ["x/y"]),
    ],
)
def test_a_pattern_matches_the_whole_answer(pattern: str, fits: str, fits_not: list[str]) -> None:
    def whole(text: str) -> bool:
        guide = AnswerGuide(AnswerForm.from_regex(pattern), NANO, STOPS)
        ids = NANO.encode_part(text)
        return guide._matcher.try_consume_tokens(ids) == len(ids) and guide.is_fulfilled

    assert whole(fits)
    assert not any(map(whole, fits_not))
