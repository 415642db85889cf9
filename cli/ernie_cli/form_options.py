"""Declares the options that say what an answer has to look like, and makes a form of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.console import Console
from ernie_cli.options import file_option, option
from ernie_local.errors import InputUnreadable, UsageError

if TYPE_CHECKING:
    from ernie_local.structured import AnswerForm

_MOST_SCHEMA_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class SchemaOptions:
    """Forms of JSON."""

    schema: str | None = file_option(
        metavar="FILE|JSON",
        help="Answer in JSON that fits this JSON Schema; a keyword that cannot be followed is an error.",
    )
    fields: str | None = option(
        metavar="TEXT",
        help="Answer in JSON with these fields, as in 'vendor, date: date, total: number, lines[]: {item, "
        "price: number}'. Types: string (default), number, integer, boolean, date, a|b|c; ?: may be null.",
    )
    bare_question: bool = option(
        "--bare-question",
        default=False,
        help="Do not tell the model of the form of its answer, which is held to it all the same.",
    )

    @cached_property
    def form(self) -> AnswerForm | None:
        """What the answer has to look like; None where nothing is said.

        UsageError for two forms and for one that cannot be used, InputUnreadable for the file of --schema.
        """
        given = {name: value for name, value in self._forms().items() if value is not None}
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(given)} are given, and an answer has 1 form",
                f"each of {', '.join(self._forms())} says what the whole answer looks like",
                f"leave out {list(given)[-1]}",
            )
        form = self._made()
        return form.with_instruction("") if form is not None and self.bare_question else form

    def check_form(self) -> None:
        """Raise what `form` raises."""
        _ = self.form

    def _forms(self) -> dict[str, str | None]:
        return {"--schema": self.schema, "--fields": self.fields}

    def _made(self) -> AnswerForm | None:
        from ernie_local.structured import AnswerForm

        if self.schema is not None:
            is_json = self.schema.lstrip().startswith(("{", "["))
            return AnswerForm.from_schema(self.schema if is_json else _read_text(Path(self.schema)))
        return None if self.fields is None else AnswerForm.from_fields(self.fields)


@dataclass(frozen=True, kw_only=True)
class FormOptions(SchemaOptions):
    """Forms of JSON, and of text."""

    regex: str | None = option(
        metavar="PATTERN", help="Answer with text that this regular expression matches as a whole."
    )
    choice: str | None = option(
        metavar="A,B,C", help="Answer with one of these texts, which are separated by commas."
    )

    def _forms(self) -> dict[str, str | None]:
        return {**super()._forms(), "--regex": self.regex, "--choice": self.choice}

    def _made(self) -> AnswerForm | None:
        from ernie_local.structured import AnswerForm

        if self.regex is not None:
            return AnswerForm.from_regex(self.regex)
        if self.choice is not None:
            return AnswerForm.from_choices(text.strip() for text in self.choice.split(","))
        return super()._made()


def note_form(console: Console, model: str, better: str) -> None:
    """Tell of a model that makes nothing of a form that it is told of. better: an option."""
    if model == "nano":
        console.note(f"nano was not trained to answer in a form that it is told of; {better} suits it better")


def _read_text(path: Path) -> str:
    from ernie_local.files import read_plain

    try:
        return read_plain(path, _MOST_SCHEMA_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputUnreadable(
            f"the schema {path} cannot be read",
            why,
            "--schema takes a file, or JSON that begins with {",
        ) from error
