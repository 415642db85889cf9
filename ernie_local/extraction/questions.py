"""Turns the fields of a form into questions of one value each, for models that read but write no JSON.

A field is asked by its description where that is a question ("Who sent the invoice?"), else by its name.
Plain texts, numbers, dates and choices are answered as they are; anything else, such as a list, as JSON of
one field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ernie_local.errors import UsageError, parameter
from ernie_local.extraction.schema_sample import resolved
from ernie_local.structured import AnswerForm
from ernie_local.structured.confidence import named
from ernie_local.structured.grammar import DAY_PATTERN
from ernie_local.structured.schema import Schema

_MOST_DEPTH = 8  # of objects in objects; a schema may contain itself
_ANNOTATIONS = {"type", "title", "description", "examples"}
_LINE = r"[^\x00-\x1f]+"
# As printed, with commas between thousands and a sign of currency, which the value leaves out: a model that
# may not write the sign takes a wrong digit in its place.
_SIGN = r"([$€£¥]|[A-Z]{3})"
_DIGITS = r"([0-9]{1,3}(,[0-9]{3}){1,4}|[0-9]{1,15})"
_INTEGER = rf"-?({_SIGN} ?)?{_DIGITS}( ?({_SIGN}|%))?"
_NUMBER = rf"-?({_SIGN} ?)?{_DIGITS}(\.[0-9]{{1,9}})?( ?({_SIGN}|%))?"


@dataclass(frozen=True, slots=True)
class FieldQuestion:
    """A question about one value.

    names: of the objects that it stands in, and its own. path: the same, as in confidences. text: the
    question. form: of the answer. read: turns the answer's value into that of the field.
    """

    names: tuple[str, ...]
    path: str
    text: str
    form: AnswerForm
    read: Callable[[Any], Any]

    def is_in(self, dotted: Collection[str]) -> bool:
        """Whether one of the paths, which know no places in lists, leads to this value or into it."""
        name = ".".join(self.names)
        return any(path == name or path.startswith(f"{name}.") for path in dotted)

    def has(self, path: str) -> bool:
        """Whether a path of a confidence leads to this value or into it."""
        return path.startswith(self.path) and path[len(self.path) :][:1] in ("", ".", "[")

    def path_of(self, path: str) -> str:
        """The path among all fields of one in the answer: "" of a text, `lines[0].price` of an object."""
        return f"{self.path}{path.removeprefix(named('', self.names[-1]))}"


def questions_of(form: AnswerForm) -> tuple[FieldQuestion, ...]:
    """A question for each field of the form's objects; a list is one field. UsageError for another form."""
    schema = object_schema(form)
    return tuple(_questions(schema, schema, ()))


def object_schema(form: AnswerForm) -> Schema:
    """The schema of a form whose answers are objects with named fields; UsageError for another form."""
    schema = form.schema or {}
    if not resolved(schema, schema).get("properties"):
        raise UsageError(
            f"{parameter('schema')} names no fields",
            "what is found in a document is an object, with a value for each field",
            parameter("fields", "vendor, date: date, total: number"),
        )
    return schema


def put(fields: dict[str, Any], names: tuple[str, ...], value: Any) -> None:
    """Put a value into objects in objects, which are made where they are missing."""
    *outer, name = names
    for each in outer:
        fields = fields.setdefault(each, {})
    fields[name] = value


def _questions(schema: Mapping[str, Any], root: Schema, names: tuple[str, ...]) -> Iterator[FieldQuestion]:
    for name, of_name in resolved(schema, root)["properties"].items():
        if of_name is False:
            continue  # no answer has it
        field, path = resolved(of_name, root), (*names, name)
        if field.get("type") == "object" and field.get("properties") and len(path) < _MOST_DEPTH:
            yield from _questions(field, root, path)
            continue
        described = field if of_name is True else {**field, **of_name}
        text = _text(path, described.get("description"))
        yield FieldQuestion(path, reduce(named, path, ""), text, *_one_value(name, field, root))


def _text(names: tuple[str, ...], description: str | None) -> str:
    described = "" if description is None else description.strip()
    if described.endswith("?"):
        return described
    question = f"What is the {' '.join(names).replace('_', ' ')}?"
    return f"{question} ({described})" if described else question


def _one_value(name: str, field: Mapping[str, Any], root: Schema) -> tuple[AnswerForm, Callable[[Any], Any]]:
    """The form of an answer that is this value alone, and what makes the field's value of it."""
    kind, rules = str(field.get("type")), field.keys() - _ANNOTATIONS
    choices = field.get("enum", ())
    if not rules and kind in _PLAIN:
        pattern, read = _PLAIN[kind]
        return AnswerForm.from_regex(pattern).with_instruction(""), read
    if rules == {"format"} and kind == "string" and field["format"] == "date":
        return AnswerForm.from_regex(DAY_PATTERN).with_instruction("Answer as YYYY-MM-DD."), str
    if not rules and kind == "boolean":
        return AnswerForm.from_choices(("yes", "no")), lambda text: text == "yes"
    if rules == {"enum"} and all(isinstance(each, str) and each for each in choices):
        return AnswerForm.from_choices(choices), str
    alone: Schema = {
        "type": "object",
        "properties": {name: field},
        "required": [name],
        "additionalProperties": False,
    }
    defined: Schema = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return AnswerForm.of({**alone, **defined}), lambda value: value[name]


def _read_number(text: str) -> float | int:
    plain = re.sub(r"[^0-9.-]", "", text)
    return float(plain) if "." in plain else int(plain)


_PLAIN: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "string": (_LINE, str.strip),
    "number": (_NUMBER, _read_number),
    "integer": (_INTEGER, _read_number),
}
