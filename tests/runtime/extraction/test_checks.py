"""Checks between fields: what they compute, and what they refuse before anything is asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.errors import UsageError
from ernie_local.extraction.checks import failed_checks, parse_check

NUMBER = {"type": "number"}
LINE = {
    "type": "object",
    "properties": {"item": {"type": "string"}, "price": NUMBER, "count": {"type": "integer"}},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string"},
        "total": NUMBER,
        "net": {"type": ["null", "number"]},
        "tax": {"anyOf": [{"type": "null"}, NUMBER]},
        "paid": {"type": "boolean"},
        "status": {"enum": [None, "paid", "open"]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        "buyer": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
    "$defs": {"line": LINE},
}
LINES = [{"item": "a", "price": 0.1, "count": 2}, {"item": "b", "price": 0.2, "count": 1}]
FIELDS: dict[str, Any] = {
    "vendor": "Acme",
    "total": 0.4,
    "net": 0.3,
    "tax": None,
    "paid": True,
    "status": "open",
    "items": LINES,
    "buyer": {"city": "Bonn"},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("net == sum(items.price)", True),  # 0.1 + 0.2 in binary is not 0.3
        ("net != sum(items.price)", False),
        ("net < sum(items.price)", False),
        ("net <= sum(items.price)", True),
        ("total == sum(items.price * items.count)", True),
        ("items.price * items.count >= 0.2", True),
        ("items.price >= 0.2", False),
        ("total == 0.41", False),
        ("123456789.1 * 3 == 370370367.3", True),
        ("123456789.1 * 3 == 370370368.3", False),
        ("abs(total - net) <= 0.1", True),
        ("round(total * 10) == 4", True),
        ("max(items.price) == 0.2 and min(items.price, ) == 0.1 and len(items) == 2", True),
        ("max(total, net) == total", True),
        ("0.1 < net < total", True),
        ('vendor == "Acme" and buyer.city != "Köln"', True),
        ("not paid or total > 1", False),
        ("paid == True", True),
        ("tax >= 0", False),  # it has no value
        ("total / (net - net) == 1", False),
        ("-total < +net", True),
        ("7 // 2 == 3 and 7 % 2 == 1", True),
        ('status == "open"', True),
    ],
)
def test_a_check_computes_as_written(text: str, holds: bool) -> None:
    check = parse_check(text, SCHEMA)
    assert check.holds(FIELDS) is holds
    assert failed_checks([check], FIELDS) == (() if holds else (check,))


@given(st.lists(st.decimals(0, 10_000, places=2), max_size=8), st.decimals(-1, 1, places=2))
def test_sums_are_those_of_decimals(prices: list[Any], error: Any) -> None:
    total = sum(prices) + error
    fields = {"total": float(total), "items": [{"price": float(price)} for price in prices]}
    assert parse_check("total == sum(items.price)", SCHEMA).holds(fields) is (error == 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("totl == 1", "there is no field totl; the fields are vendor, total, net,"),
        ("items.cost == 1", r"there is no field items\.cost"),
        ("total.real == 1", r"there is no field total\.real"),
        ("items.append == 1", r"there is no field items\.append"),
        ("vendor.format == 1", r"there is no field vendor\.format"),
        ("sum(vendor) == 1", "sum takes a list, and 'text' is none"),
        ("sum(items.item) == 1", "sum takes numbers, and 'text' is none"),
        ("total == vendor", "compares values of two kinds"),
        ("paid + 1 == 2", r"\+ takes numbers, and true is none"),
        ("total", "it compares nothing"),
        ("", "it cannot be read"),
        ("total ==", "it cannot be read"),
        ("total = 1", "it cannot be read"),
        ("total == 1; total", "it cannot be read"),
        ("total == 2 ** 99999999", r"'2 \*\* 99999999' is not read here"),
        ("total is 1", "'total is 1' is not read here"),
        ("sum(items.price, 3) == 1", "sum: too many positional arguments"),
        ("abs() == 1", "abs: missing a required argument"),
        ("1 << 99999999 == total", "is not read here"),
        ("'a' * 99999999 == vendor", r"\* takes numbers"),
        ("vendor + vendor == vendor", r"\+ takes numbers"),
        ("round(total, -1000000000) == 1", "round takes -20 to 20 digits"),
        ("vendor.__class__ == 1", r"there is no field vendor\.__class__"),
        ("items.clear() == 1", "is not read here"),
        ("open('x') == 1", "is not read here"),
        ("[x for x in items] == 1", "is not read here"),
        ("items[0].price == 1", "is not read here"),
        ("(lambda: 1)() == 1", "is not read here"),
        ("f'{total}' == vendor", "is not read here"),
        ("sum(total=1) == 1", "is not read here"),
        ("total == None", "is not read here"),
        ("total == 1j", "is not read here"),
        ("total == b'1'", "is not read here"),
        ("total == " + "-" * 900 + "1", "it is nested 9.. deep|it cannot be read"),
        ("(" * 300 + "total" + ")" * 300 + " == 1", "it cannot be read|nested"),
        ("total == 1" + " " * 1000, "it has 1010 characters, at most 1000"),
        ("sum == 1", "there is no field sum"),
    ],
)
def test_other_expressions_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        parse_check(text, SCHEMA)
    assert raised.value.what.startswith("check=")
    assert raised.value.what.endswith("cannot be used")


def test_a_failed_check_tells_its_values() -> None:
    check = parse_check("total == sum(items.price) + tax", SCHEMA)
    assert check.describe(FIELDS) == (
        "total == sum(items.price) + tax (total is 0.4, items.price is [0.1, 0.2], tax has no value)"
    )


def test_a_schema_that_contains_itself_ends() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#"}}},
    }
    check = parse_check("len(parts.parts.name) > 0", schema)
    assert check.holds({"parts": [{"parts": [{"name": "a"}]}]})
