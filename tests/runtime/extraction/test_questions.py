"""Questions of one value each: their words, the form of their answers, and where a value belongs."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.errors import UsageError
from ernie_local.extraction import questions as module
from ernie_local.extraction.checks import parse_check
from ernie_local.extraction.paths import leaves
from ernie_local.extraction.questions import put, questions_of
from ernie_local.extraction.schema_sample import sample_of
from ernie_local.structured import AnswerForm
from ernie_local.structured.grammar import DAY_PATTERN

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string", "description": "Who sent the invoice?"},
        "total": {"type": "number", "description": "with VAT"},
        "num_pages": {"type": "integer"},
        "due": {"type": "string", "format": "date"},
        "paid": {"type": "boolean"},
        "status": {"enum": ["open", "in part"]},
        "buyer": {"$ref": "#/$defs/buyer"},
        "note": {"type": ["string", "null"]},
        "rate": {"type": "number", "minimum": 0},
        "lines": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "number"}}}},
    },
    "$defs": {
        "buyer": {"type": "object", "properties": {"city": {"type": "string"}, "tax no": {"type": "string"}}}
    },
}


def test_subschemas_may_be_true_and_false() -> None:
    schema = {"type": "object", "properties": {"a": True, "b": {"type": "array", "items": True}, "c": False}}
    found = questions_of(AnswerForm.of(schema))
    assert [(each.path, each.text) for each in found] == [("a", "What is the a?"), ("b", "What is the b?")]
    assert sample_of(schema) == {"a": None, "b": [None], "c": None}
    assert parse_check("len(b) == 1", schema).holds({"b": [2]})


def test_each_field_is_one_question() -> None:
    found = {question.path: question for question in questions_of(AnswerForm.of(SCHEMA))}
    assert {path: question.text for path, question in found.items()} == {
        "vendor": "Who sent the invoice?",
        "total": "What is the total? (with VAT)",
        "num_pages": "What is the num pages?",
        "due": "What is the due?",
        "paid": "What is the paid?",
        "status": "What is the status?",
        "buyer.city": "What is the buyer city?",
        'buyer["tax no"]': "What is the buyer tax no?",
        "note": "What is the note?",
        "rate": "What is the rate?",
        "lines": "What is the lines?",
    }
    assert found["vendor"].form.instruction == ""
    assert [path for path, each in found.items() if each.form.kind == "json"] == ["note", "rate", "lines"]


@pytest.mark.parametrize(
    ("path", "answer", "value"),
    [
        ("vendor", " Acme & Co ", "Acme & Co"),
        ("total", "1,234.50", 1234.5),
        ("total", "-7", -7),
        ("total", "$1,234.50", 1234.5),
        ("total", "-£ 3.00", -3.0),
        ("total", "12.00 EUR", 12.0),
        ("total", "USD 7", 7),
        ("total", "19%", 19),
        ("num_pages", "¥12,000", 12000),
        ("num_pages", "12,000", 12000),
        ("due", "2026-11-29", "2026-11-29"),
        ("paid", "yes", True),
        ("paid", "no", False),
        ("status", "in part", "in part"),
        ('buyer["tax no"]', "DE 1", "DE 1"),
        ("note", {"note": None}, None),
        ("lines", {"lines": [{"price": 1}]}, [{"price": 1}]),
    ],
)
def test_an_answer_becomes_the_value_of_its_field(path: str, answer: Any, value: Any) -> None:
    question = next(each for each in questions_of(AnswerForm.of(SCHEMA)) if each.path == path)
    assert question.read(answer) == value
    assert type(question.read(answer)) is type(value)
    fields: dict[str, Any] = {}
    put(fields, question.names, question.read(answer))
    assert all(each.startswith(path) for each, _ in leaves(fields))


@given(st.integers(-(10**9), 10**9))
def test_numbers_are_read_as_they_are_printed(number: int) -> None:
    for text in (str(number), f"{number:,}"):
        assert re.fullmatch(module._INTEGER, text)
        assert re.fullmatch(module._NUMBER, f"{text}.25")
        assert module._read_number(text) == number


@pytest.mark.parametrize(
    "text", ["1,23", "1,2345", ",123", "12,", "1.", ".5", "--1", "1e5", "$", "EUR", "1 000", ""]
)
def test_other_numbers_are_no_answers(text: str) -> None:
    assert not re.fullmatch(module._NUMBER, text)


def test_a_day_that_is_not_there_is_no_answer() -> None:
    """Every month of a leap year and of another one, by Python's own calendar."""
    for year in (1900, 2024, 2025, 2000):
        for month in range(14):
            for day in range(33):
                text = f"{year}-{month:02}-{day:02}"
                try:
                    is_there = bool(date.fromisoformat(text))
                except ValueError:
                    is_there = False
                assert bool(re.fullmatch(DAY_PATTERN, text)) == is_there, text
    (question,) = questions_of(AnswerForm.of("due: date"))
    assert question.form.grammar == AnswerForm.from_regex(DAY_PATTERN).grammar


def test_paths_of_confidences_are_those_among_all_fields() -> None:
    found = {question.path: question for question in questions_of(AnswerForm.of(SCHEMA))}
    assert found["vendor"].path_of("") == "vendor"
    assert found["lines"].path_of("lines[0].price") == "lines[0].price"
    assert found['buyer["tax no"]'].path_of("") == 'buyer["tax no"]'
    assert found["lines"].has("lines[1].price")
    assert found["note"].has("note")
    assert not found["note"].has("notes")
    assert found["lines"].is_in(["lines.price"])
    assert found["buyer.city"].is_in(["buyer.city"])
    assert not found["rate"].is_in(["rates", "lines.rate"])


@pytest.mark.parametrize(
    "schema",
    [{"type": "array", "items": {"type": "null"}}, {"type": "object", "properties": {}}, {"type": "string"}],
)
def test_a_form_without_fields_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="schema names no fields"):
        questions_of(AnswerForm.of(schema))


def test_a_schema_that_contains_itself_ends() -> None:
    node = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}}}
    form = AnswerForm.of(
        {"type": "object", "properties": {"first": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}
    )
    found = questions_of(form)
    assert len(found) == 8
    assert found[-1].form.kind == "json"
