"""Reads the short language of fields, as in `vendor, date: date, lines[]: {item, price: number}`.

    field        a text:            vendor
    field: TYPE  string, number, integer, boolean or date (2026-11-29): total: number
    a|b|c        one of these; quoted where it is more than a word:  status: paid|open|"in part"
    []           behind the name or the type, a list:  tags[]
    {...}        an object with fields of its own:  buyer: {name, city}
    ?            behind the name or the type, may be null:  due?: date
    "..."        at the end of a field, what it means, which the model is told:  total: number "with VAT"

Fields are separated by commas. A name is letters, digits, `_` and `-`, or any text in quotes. Each field
must be in the answer, in this order, and no others.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from ernie_local.errors import UsageError, parameter
from ernie_local.structured.schema import LARGEST_DEPTH, Schema

_TYPES: dict[str, Schema] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
_TOKEN = re.compile(r'\s*(?:(?P<word>[\w.-]+)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<mark>\[\]|[{}:,|?])|$)')
_SHOWN_CHARACTERS = 24
_EXAMPLE = "vendor, date: date, total: number, lines[]: {item, price: number}"


def parse_fields(text: str) -> Schema:
    """The JSON schema that `text` is short for; UsageError names the place of what cannot be read."""
    return _FieldReader(text).read()


class _FieldReader:
    """Reads from left to right. `_kind` and `_token` are what comes next; at the end both are ""."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._stop = 0
        self._advance()

    def read(self) -> Schema:
        schema = self._object(depth=0)
        if self._token == "}":
            self._refuse("a } without its {")
        return schema

    def _advance(self) -> str:
        """Go one token on; returns the one before."""
        before = getattr(self, "_token", "")
        match = _TOKEN.match(self._text, self._stop)
        if match is None:
            self._start = self._stop + len(self._text[self._stop :]) - len(self._text[self._stop :].lstrip())
            what = (
                "a quote that is not closed" if self._text[self._start] == '"' else "a sign without a meaning"
            )
            self._refuse(what)
        self._kind = match.lastgroup or ""
        self._token = "" if match.lastgroup is None else match[match.lastgroup]
        self._stop = match.end()
        self._start = self._stop - len(self._token)
        return before

    def _object(self, depth: int) -> Schema:
        if depth > LARGEST_DEPTH:
            self._refuse(f"objects inside each other {depth} deep, at most {LARGEST_DEPTH} are read")
        properties: dict[str, Schema] = {}
        while True:
            name_start = self._start
            name, schema = self._field(depth)
            if name in properties:
                self._start = name_start
                self._refuse(f"the field {name!r} stands twice")
            properties[name] = schema
            if self._token != ",":
                break
            self._advance()
            if self._token in ("", "}"):  # a comma behind the last field
                break
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def _field(self, depth: int) -> tuple[str, Schema]:
        if self._kind not in ("word", "quoted"):
            self._refuse("a field's name is missing")
        name = self._unquoted()
        if not name or (self._kind == "word" and "." in name):
            self._refuse("a name is letters, digits, _ and -, or stands in quotes")
        self._advance()
        marks = self._marks()
        schema: Schema = dict(_TYPES["string"])
        if self._token == ":":
            self._advance()
            if self._kind != "quoted" or self._is_followed_by_bar():
                schema = self._type(depth)
                more = self._marks()
                if "[]" in marks and "[]" in more:
                    self._refuse(f"{name!r} is a list of lists")
                marks |= more
        if "[]" in marks:
            schema = {"type": "array", "items": schema}
        if "?" in marks:
            schema = _or_null(schema)
        if self._kind == "quoted":
            schema["description"] = self._unquoted()
            self._advance()
        if self._token not in (",", "}", ""):
            self._refuse("a comma is missing")
        return name, schema

    def _marks(self) -> set[str]:
        marks: set[str] = set()
        while self._token in ("[]", "?") and self._kind == "mark":
            if self._token in marks:
                self._refuse(f"{self._token} stands twice")
            marks.add(self._advance())
        return marks

    def _type(self, depth: int) -> Schema:
        if self._token == "{" and self._kind == "mark":
            self._advance()
            schema = self._object(depth + 1)
            if self._token != "}":
                self._refuse("a { without its }")
            self._advance()
            return schema
        start, is_word = self._start, self._kind == "word"
        if not is_word and self._kind != "quoted":
            self._refuse("a type is missing")
        values = [self._unquoted()]
        self._advance()
        while self._token == "|" and self._kind == "mark":
            self._advance()
            if self._kind not in ("word", "quoted"):
                self._refuse("a value is missing behind |")
            if self._kind == "word" and self._token in _TYPES:
                self._refuse("a type cannot be one of several values")
            values.append(self._unquoted())
            if values.count(values[-1]) > 1:
                self._refuse(f"the value {values[-1]!r} stands twice")
            self._advance()
        if len(values) > 1:
            if is_word and values[0] in _TYPES:
                self._start = start
                self._refuse("a type cannot be one of several values")
            return {"enum": values}
        if values[0] not in _TYPES:
            self._start = start
            self._refuse(
                f"the type {values[0]!r} is unknown, the types are {', '.join(_TYPES)}, a|b and {{}}"
            )
        return dict(_TYPES[values[0]])

    def _unquoted(self) -> str:
        if self._kind != "quoted":
            return self._token
        return re.sub(r"\\(.)", r"\1", self._token[1:-1], flags=re.DOTALL)

    def _is_followed_by_bar(self) -> bool:
        return self._text[self._stop :].lstrip().startswith("|")

    def _refuse(self, what: str) -> NoReturn:
        start = max(0, self._start - _SHOWN_CHARACTERS)
        before = ("..." if start else "") + self._text[start : self._start]
        after = self._text[self._start :][:_SHOWN_CHARACTERS] or "(end)"
        place = f"character {self._start + 1}" if self._start < len(self._text) else "the end"
        raise UsageError(
            f"{parameter('fields')}: {what}, at {place} of {len(self._text)} characters",
            f"it stands here: {before}>>>{after}",
            parameter("fields", _EXAMPLE),
        )


def _or_null(schema: Schema) -> Schema:
    changed: dict[str, Any] = dict(schema)
    if "enum" in schema:
        changed["enum"] = [*schema["enum"], None]
    else:
        changed["type"] = [schema["type"], "null"]
    return changed
