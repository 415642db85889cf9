"""Says what an answer has to look like: JSON of a schema, a regular expression, or one of several texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from ernie_local.errors import NoAnswer, UsageError, parameter
from ernie_local.strict_json import show
from ernie_local.structured.fields import parse_fields
from ernie_local.structured.grammar import choices_grammar, regex_grammar, schema_grammar
from ernie_local.structured.instruction import choices_instruction, regex_instruction, schema_instruction
from ernie_local.structured.schema import Schema, read_schema


@runtime_checkable
class SchemaModel(Protocol):
    """A class of Pydantic, or another that writes its schema as they do."""

    def model_json_schema(self) -> Schema:
        """The JSON schema of its instances."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer has to look like. Made by `of` and the methods beside it.

    kind: "json" for an answer that is JSON, "text" for one that is not. schema: the JSON schema as it was
    given; None for text. instruction: what the model is told of the form behind the question, "" for nothing;
    `with_instruction` changes it.
    """

    kind: Literal["json", "text"]
    grammar: str = field(repr=False)
    instruction: str
    schema: Schema | None = None

    @classmethod
    def of(cls, source: FormSource) -> AnswerForm:
        """From a JSON schema, as a mapping or JSON text, a Pydantic model, or text in the language of fields.

        A form is taken as it is. UsageError names what cannot be used, and its place.
        """
        if isinstance(source, AnswerForm):
            return source
        if isinstance(source, SchemaModel):
            return cls.from_schema(source.model_json_schema())
        if isinstance(source, str) and not source.lstrip().startswith("{"):
            return cls.from_fields(source)
        if not isinstance(source, str | Mapping):
            raise UsageError(
                f"{parameter('schema')} of the type {type(source).__name__}",
                "it must be a JSON schema (dict or text), a Pydantic model, text of fields, or an AnswerForm",
                'schema="vendor, total: number"',
            )
        return cls.from_schema(source)

    @classmethod
    def from_schema(cls, source: Mapping[str, Any] | str) -> AnswerForm:
        """From a JSON schema, as a mapping or JSON text."""
        schema = read_schema(source)
        return cls("json", schema_grammar(schema), schema_instruction(schema), schema)

    @classmethod
    def from_fields(cls, text: str) -> AnswerForm:
        """From text in the language of `structured.fields`, as in `vendor, date: date, lines[]: {item}`."""
        return cls.from_schema(parse_fields(text))

    @classmethod
    def from_regex(cls, pattern: str) -> AnswerForm:
        """Text that the regular expression matches as a whole; in Rust's syntax, without lookaround."""
        return cls("text", regex_grammar(pattern), regex_instruction(pattern))

    @classmethod
    def from_choices(cls, choices: Iterable[str]) -> AnswerForm:
        """One of these texts. UsageError for none of them, an empty one, and one that stands twice."""
        texts = tuple(choices)
        doubles = [text for text, count in Counter(texts).items() if count > 1]
        if not texts or "" in texts or doubles:
            raise UsageError(
                f"{parameter('choice')} with {len(texts)} texts cannot be used",
                f"{show(doubles[0])} stands twice"
                if doubles
                else "each must have a letter, and one must be there",
                parameter("choice", "yes,no"),
            )
        return cls("text", choices_grammar(texts), choices_instruction(texts))

    def with_instruction(self, instruction: str) -> AnswerForm:
        """The same form, of which the model is told this; "" to tell it nothing."""
        return replace(self, instruction=instruction)

    def value(self, text: str) -> Any:
        """What a whole answer means: its JSON, or the text itself.

        NoAnswer where JSON is nested too deeply to be read.
        """
        try:
            return json.loads(text) if self.kind == "json" else text
        except RecursionError as error:
            raise NoAnswer(
                f"the answer of {len(text)} characters cannot be read",
                "its lists and objects are nested too deeply",
                "a schema that does not refer to itself, or bounds with maxItems",
            ) from error


FormSource: TypeAlias = AnswerForm | Mapping[str, Any] | str | SchemaModel
