"""The short language of fields: what it means as a JSON schema, and how mistakes in it are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.errors import UsageError
from ernie_local.structured.fields import parse_fields

TEXT: dict[str, Any] = {"type": "string"}


def of(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("vendor", of(vendor=TEXT)),
        (" vendor : string , ", of(vendor=TEXT)),
        (
            "date: date, total: number, n: integer, paid: boolean",
            of(
                date={"type": "string", "format": "date"},
                total={"type": "number"},
                n={"type": "integer"},
                paid={"type": "boolean"},
            ),
        ),
        ("due?: date", of(due={"type": ["string", "null"], "format": "date"})),
        ("due: date?", of(due={"type": ["string", "null"], "format": "date"})),
        ("tags[]", of(tags={"type": "array", "items": TEXT})),
        ("tags[]?", of(tags={"type": ["array", "null"], "items": TEXT})),
        ("n: integer[]", of(n={"type": "array", "items": {"type": "integer"}})),
        ("s: paid|open", of(s={"enum": ["paid", "open"]})),
        ('s: paid|"in part"|1.5?', of(s={"enum": ["paid", "in part", "1.5", None]})),
        (
            'lines[]: {item, price: number "net"}',
            of(
                lines={
                    "type": "array",
                    "items": of(item=TEXT, price={"type": "number", "description": "net"}),
                }
            ),
        ),
        (
            'buyer?: {name} "who pays"',
            of(buyer={**of(name=TEXT), "type": ["object", "null"], "description": "who pays"}),
        ),
        ('vendor "who sells"', of(vendor={**TEXT, "description": "who sells"})),
        ('vendor: "who sells"', of(vendor={**TEXT, "description": "who sells"})),
        (r'"a \"b\", c": number', of(**{'a "b", c': {"type": "number"}})),
        (
            "Größe, 数量: integer, invoice-no",
            of(**{"Größe": TEXT, "数量": {"type": "integer"}, "invoice-no": TEXT}),
        ),
    ],
)
def test_what_fields_mean(text: str, schema: dict[str, Any]) -> None:
    assert parse_fields(text) == schema


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("", "a field's name is missing", ">>>(end)"),
        ("a, b, a: number", "the field 'a' stands twice", "a, b, >>>a: number"),
        ("lines[]: {item, item}", "the field 'item' stands twice", "{item, >>>item}"),
        ("a: numbr", "the type 'numbr' is unknown", "a: >>>numbr"),
        ("a: {b", "a { without its }", "a: {b>>>(end)"),
        ("a}", "a } without its {", "a>>>}"),
        ("a: {}", "a field's name is missing", "a: {>>>}"),
        ("a b", "a comma is missing", "a >>>b"),
        ("a,,b", "a field's name is missing", "a,>>>,b"),
        ("a: string|number", "a type cannot be one of several values", "string|>>>number"),
        ("a: number|x", "a type cannot be one of several values", "a: >>>number|x"),
        ("a: x|x", "the value 'x' stands twice", "x|>>>x"),
        ("a: x|", "a value is missing", "x|>>>(end)"),
        ("a: [", "a sign without a meaning", "a: >>>["),
        ('a "b', "a quote that is not closed", 'a >>>"b'),
        ("a??", "? stands twice", "a?>>>?"),
        ("a[]: b[]", "the type 'b' is unknown", "a[]: >>>b"),
        ("a[]: integer[]", "a list of lists", "(end)"),
        ("a.b", "a name is letters", ">>>a.b"),
        ('"": number', "a name is letters", '>>>"": number'),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, what: str, place: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_fields(text)
    assert what in error.value.what
    assert place in error.value.why


@given(st.text(alphabet='ab:,[]{}?|" \\.é\n', max_size=30))
def test_any_text_is_read_or_told_to_be_wrong(text: str) -> None:
    try:
        schema = parse_fields(text)
    except UsageError:
        return
    assert schema["required"] == list(schema["properties"])


def test_deep_objects_are_refused() -> None:
    with pytest.raises(UsageError, match="inside each other"):
        parse_fields("a: {" * 5000)
