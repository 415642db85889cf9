"""Defines the record of a document, which is one line of JSON: what was found, how surely, how it went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ernie_local.errors import ErnieLocalError, InputUnreadable, ParameterSpelling
from ernie_local.strict_json import show

if TYPE_CHECKING:
    from ernie_local.media.image_view import CropBox


@dataclass(frozen=True, slots=True)
class RecordError:
    """Why a document has no fields. kind: the name of the error's class; the others are its three lines."""

    kind: str
    what: str
    why: str
    hint: str

    @classmethod
    def of(cls, error: ErnieLocalError, spelling: ParameterSpelling | None = None) -> RecordError:
        """An error of the library, its arguments written by `spelling`."""
        return cls(type(error).__name__, *error.spelled(spelling))


@dataclass(frozen=True, slots=True)
class Record:
    """What was found in a document: one page, or a whole file. The fields are the keys of its line, in order.

    file: its path from the folder that was given, with "/". page: from 1; None for an image, and for a file
    that was asked about as a whole. fields: the answer, a JSON object; None where there is none.
    Values in it have paths such as "total" and "lines[0].price":
    confidence: the share of the probability that the value got, 0 to 1. boxes: where it stands, left, top,
    right and bottom in pixels of the original, points of a PDF page. review: the paths below the asked
    confidence. failed_checks: the expressions that do not hold. notes: places in the answer that are no box,
    or were cut at the edge of the image. seconds: from opening the file to the last answer. prompt_tokens,
    completion_tokens: of all questions about it.
    """

    file: str
    page: int | None = None
    fields: Mapping[str, Any] | None = None
    confidence: Mapping[str, float] = field(default_factory=dict)
    boxes: Mapping[str, CropBox] = field(default_factory=dict)
    review: tuple[str, ...] = ()
    failed_checks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: RecordError | None = None

    @property
    def key(self) -> tuple[str, int | None]:
        """Which document it is of."""
        return self.file, self.page

    def to_json(self) -> str:
        """One line of JSON without its line break."""
        # Names of files that are no UTF-8 arrive as lone surrogates, which UTF-8 cannot hold: escaped.
        text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "backslashreplace").decode()


def parse_record(line: str, where: str) -> Record:
    """The record of a line that `Record.to_json` wrote; `where` names the line in the InputUnreadable."""
    try:
        keys = json.loads(line)
        if not isinstance(keys, dict):
            raise ValueError(f"it is {show(keys)}, not an object")
        if list(keys) != [each.name for each in fields(Record)]:
            raise ValueError(f"its keys are {', '.join(keys)}")
        return _record_of(keys)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputUnreadable(
            f"{where} is not a record of `extract`",
            str(error),
            "check that the file is an output of `extract`",
        ) from error


def _record_of(keys: dict[str, Any]) -> Record:
    """Raises ValueError, TypeError or AttributeError for values of other kinds."""
    if not isinstance(keys["file"], str) or not isinstance(keys["page"], int | None):
        raise ValueError(f"file is {show(keys['file'])} and page is {show(keys['page'])}")
    if not isinstance(keys["fields"], dict | None) or not isinstance(keys["confidence"], dict):
        raise ValueError(f"fields is {show(keys['fields'])}")
    boxes = {path: _box_of(box) for path, box in keys["boxes"].items()}
    changed = {
        "boxes": boxes,
        "review": tuple(keys["review"]),
        "failed_checks": tuple(keys["failed_checks"]),
        "notes": tuple(keys["notes"]),
        "error": None if keys["error"] is None else RecordError(**keys["error"]),
    }
    return Record(**{**keys, **changed})


def _box_of(values: list[int]) -> CropBox:
    left, top, right, bottom = values
    return left, top, right, bottom
