"""Schemas: what cannot be followed is refused by name and place, and what can be followed is complete."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pydantic
import pytest

from ernie_local.errors import UsageError
from ernie_local.structured import AnswerForm

NODE: dict[str, Any] = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/node"}},
    "required": ["next"],
}
DEEP: Any = {"type": "string"}
for _ in range(60):
    DEEP = {"type": "array", "items": DEEP}


def within(part: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": part}}


@pytest.mark.parametrize(
    ("schema", "place", "why"),
    [
        (within({"if": {}}), "$.properties.a.if", "'if' is not supported"),
        (within({"not": {}}), "$.properties.a.not", "not supported"),
        (within({"type": "array", "uniqueItems": True}), "$.properties.a.uniqueItems", "not supported"),
        (within({"type": "array", "contains": {}}), "$.properties.a.contains", "not supported"),
        (within({"type": "string", "nullable": True}), "$.properties.a.nullable", "not supported"),
        (within({"type": "string", "minLenght": 3}), "$.properties.a.minLenght", "not supported"),
        (within({"$dynamicRef": "#x"}), "$.properties.a.$dynamicRef", "not supported"),
        ({"type": "string", "x-guidance": {"lenient": True}}, '$["x-guidance"]', "not supported"),
        (within({"type": "string", "format": "colour"}), "$.properties.a", "colour"),
        (within({"type": "string", "pattern": "a(?=b)"}), "$.properties.a", "look-ahead"),
        (within({"type": "string", "pattern": "(a)\\1"}), "$.properties.a", "backreferences"),
        (within({"type": "integer", "minimum": 5, "maximum": 3}), "$.properties.a", "greater than maximum"),
        (within({"type": "string", "minLength": 5, "maxLength": 3}), "$.properties.a", "greater than max"),
        (within({"type": "array", "minItems": 5, "maxItems": 3}), "$.properties.a", "greater than maxItems"),
        (within({"const": 1, "type": "string"}), "$.properties.a", "incompatible"),
        (within({"enum": []}), "$.properties.a", ""),
        (within({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "$.properties.a", "oneOf"),
        ({**within({}), "required": ["b"], "additionalProperties": False}, "$", "'b'"),
        ({**within({}), "required": ["b"]}, "$", "'b'"),
        (
            {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True},
            "$.exclusiveMinimum",
            "is of draft 4",
        ),
        ({"$schema": []}, "$.$schema", "is not the address of a draft"),
        (within({"type": "word"}), "$.properties.a.type", "no JSON schema"),
        (within({"items": 3}), "$.properties.a.items", "no JSON schema"),
        (within({"pattern": "["}), "$.properties.a", ""),
        (within({"$ref": "http://example.com/schema"}), "$.properties.a.$ref", "nothing is fetched"),
        (within({"$ref": "other.json"}), "$.properties.a.$ref", "nothing is fetched"),
        (within({"$ref": "#foo"}), "$.properties.a.$ref", "is an anchor"),
        (within({"$ref": "#/$defs/none"}), "$.properties.a.$ref", "leads to no schema"),
        ({"$ref": "#"}, "$.$ref", "no value of it has an end"),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, "$.$ref", "no value of it has an end"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}, "$.$defs.a.$ref", "no"),
        (within({"const": "\x00"}), "$.properties.a.const", "U+0000"),
        (within({"enum": ["a", "\ud800"]}), "$.properties.a.enum", "U+D800"),
        ({"type": "object", "properties": {"\x07": {}}}, '$.properties["\\u0007"]', "U+0007"),
        (within({"const": 10**30}), "$.properties.a.const", "64 bits"),
        (within({"minimum": 10**30}), "$.properties.a.minimum", "1e+18"),
        ({"type": "object", "minProperties": 2}, "$.minProperties", "differ"),
        (DEEP, "$.items", "inside each other"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"minimum": 1, "anyOf": [{"$ref": "#/$defs/a"}, {}]}}},
            "#/$defs/a",
            "leads back to itself",
        ),
        ({"items": {"minimum": 2, "$ref": "#"}, "minItems": 0}, "#", "leads back to itself"),
        (
            {
                "minimum": 1,
                "$defs": {"a": {"additionalProperties": {"multipleOf": 2, "anyOf": [{"$ref": "#/$defs/a"}]}}},
            },
            "#/$defs/a",
            "leads back to itself",
        ),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{}]}, "$.items", "older drafts"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_with_its_place(schema: Any, place: str, why: str) -> None:
    with pytest.raises(UsageError) as error:
        AnswerForm.of(schema)
    assert place in error.value.what
    assert why in error.value.why
    assert str(error.value).count("\n") == 2


@pytest.mark.parametrize(
    "source", ["{", '{"a": 1, "a": 2}', "{'type': 'string'}", {"x": float("nan")}, {"x": {1, 2}}]
)
def test_what_is_no_json_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match="is not a JSON object"):
        AnswerForm.of(source)


@pytest.mark.parametrize("source", [3, ["a"], None, True])
def test_what_is_no_form_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match=type(source).__name__):
        AnswerForm.of(source)


def test_recursion_without_an_end_is_told_from_recursion_with_one() -> None:
    ends = {**NODE, "required": []}
    AnswerForm.of({"$ref": "#/$defs/node", "$defs": {"node": ends}})
    AnswerForm.of({"type": "array", "items": {"$ref": "#"}})
    with pytest.raises(UsageError, match="no value of it has an end"):
        AnswerForm.of({"type": "array", "items": {"$ref": "#"}, "minItems": 1})
    either = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
    AnswerForm.of({"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "properties": {"next": either}}}})


def test_the_whole_is_written_where_it_is_joined_without_its_definitions() -> None:
    inner = {"additionalProperties": {"multipleOf": 2, "anyOf": [{"type": "number"}, {"$ref": "#"}]}}
    AnswerForm.of({"minimum": 4, "$defs": {"a": inner}})


class Line(pydantic.BaseModel):
    item: str
    price: float = pydantic.Field(ge=0)


class Invoice(pydantic.BaseModel):
    """An invoice."""

    vendor: str = pydantic.Field(description="who sells")
    lines: list[Line]
    note: str | None = None


def test_pydantic_models_json_text_and_fields_are_forms() -> None:
    form = AnswerForm.of(Invoice)
    assert form.schema == Invoice.model_json_schema()
    assert AnswerForm.of(json.dumps(Invoice.model_json_schema())) == form
    assert AnswerForm.of(form) is form
    assert form.instruction == (
        'Answer in JSON of this form: {"vendor": string (who sells), '
        '"lines": [{"item": string, "price": number >= 0}, ...], "note"?: string | null}'
    )
    assert AnswerForm.of("vendor").schema == AnswerForm.from_fields("vendor").schema


def test_parts_of_an_object_are_told_together() -> None:
    base = {"type": "object", "properties": {"a": {"type": "integer"}}}
    more = {"properties": {"b": {"type": "null"}}, "required": ["b"]}
    for schema in (
        {"allOf": [{"$ref": "#/$defs/base"}, more], "$defs": {"base": base}},
        {**base, "anyOf": [more]},
        {**more, "$ref": "#/$defs/base", "$defs": {"base": base}},
    ):
        told = AnswerForm.of(schema).instruction
        assert '"a"?: integer' in told
        assert '"b": null' in told


def test_a_long_enum_is_told_in_part() -> None:
    form = AnswerForm.of(
        {"type": "object", "properties": {"a": {"enum": [f"value {i}" for i in range(5000)]}}}
    )
    assert "(4970 more)" in form.instruction
    assert len(form.instruction) < 1000
    assert len(AnswerForm.from_choices([f"value {i}" for i in range(5000)]).instruction) < 1000


@pytest.mark.parametrize(
    ("choices", "why"),
    [([], "one must be there"), (["a", ""], "a letter"), (["a", "b", "a"], "'a' stands twice")],
)
def test_choices_that_are_none(choices: list[str], why: str) -> None:
    with pytest.raises(UsageError) as error:
        AnswerForm.from_choices(choices)
    assert why in error.value.why


@pytest.mark.parametrize("pattern", ["", "a(?=b)", "(?<!a)b", "(a)\\1", "[a", "(a", "\\bword\\b"])
def test_patterns_that_cannot_be_followed(pattern: str) -> None:
    with pytest.raises(UsageError, match="regex"):
        AnswerForm.from_regex(pattern)


@pytest.mark.slow
def test_a_schema_that_is_too_large_is_told_so() -> None:
    with pytest.raises(UsageError) as error:
        AnswerForm.from_fields(", ".join(f"f{number}: number" for number in range(3000)))
    assert "too large for the engine of grammars" in error.value.why
    assert "fewer fields" in error.value.hint


def test_a_form_needs_no_torch() -> None:
    """It is made before a command loads anything."""
    code = (
        "import sys; from ernie_local.structured import AnswerForm; AnswerForm.of('a');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_half_a_surrogate_pair_is_told() -> None:
    """Bytes of the command line that are not UTF-8 arrive so."""
    with pytest.raises(UsageError, match="surrogate"):
        AnswerForm.from_regex("a\udc80")
    with pytest.raises(UsageError, match="surrogate"):
        AnswerForm.from_choices(["a", "\udc80"])
    with pytest.raises(UsageError, match="surrogates"):
        AnswerForm.of('{"title": "\udc80"}')


def test_many_properties_are_read_once() -> None:
    """Each of them is also checked alone, without reading all the others again."""
    many = {f"p{index}": {"type": "string"} for index in range(600)}
    form = AnswerForm.of({"type": "object", "properties": many})
    assert form.schema is not None
    assert len(form.schema["properties"]) == 600
