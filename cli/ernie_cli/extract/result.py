"""The object of `ernie-local extract --json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ernie_cli.json_object import fill_result

if TYPE_CHECKING:
    from ernie_local.extraction.record import Record


@dataclass
class RecordErrorObject:
    """Why a document has no fields."""

    kind: str  #: The class of the error, such as `InputUnreadable`.
    what: str
    why: str
    hint: str


@dataclass
class RecordObject:
    """One document: a page, or a whole file. Values have paths such as `total` and `lines[0].price`."""

    file: str  #: Its path from the folder that was given, with `/`.
    page: int | None  #: From 1; null for an image or a video, and with `--per-file`.
    fields: dict[str, object] | None  #: As the schema says; null where there is no answer.
    confidence: dict[str, float]  #: How sure the model was of each value, from 0 to 1.
    boxes: dict[str, list[int]]
    """With `--boxes`: [left, top, right, bottom] in pixels of the original; in points of a PDF page."""
    review: list[str]  #: Paths of values below `--min-confidence`.
    failed_checks: list[str]  #: Expressions of `--check` that do not hold.
    notes: list[str]
    """With `--boxes`: places in the answer that are no box, or were cut at the edge of the image; of a video,
    that it has none."""
    seconds: float  #: From opening the file to the answer.
    prompt_tokens: int  #: Of all questions about it.
    completion_tokens: int
    error: RecordErrorObject | None


@dataclass
class ForecastObject:
    """What a run would take, without loading the model: of documents that FILE of `--out` does not have.

    Documents one after the other: several at once (`--parallel`) take less. Thoughts of an unknown length
    count 256 tokens, or as many as they may have where that is less. `seconds_high` counts the longest
    thoughts, and with `--retry` every question twice.
    """

    documents: int
    unreadable: int  #: Of them: they could not be opened, or are videos of more tokens than the context.
    images: int  #: Pages and pictures.
    videos: int
    frames: int  #: That the model sees of the videos.
    prompt_tokens: int  #: Of one question about each document, or of one for each field with `--ask each`.
    completion_tokens: int  #: About: of answers with one item in each list, and of thoughts.
    thought_tokens: int  #: Of them: of thoughts.
    seconds_low: float
    seconds_likely: float
    seconds_high: float
    is_measured: bool  #: Whether `bench` has measured this machine; else its speed is assumed.


@dataclass
class ExtractResult:
    """Counts of the documents of this run, whatever its end; the records themselves where no --out takes
    them."""

    model: str | None = None  #: MODEL as given.
    out: str | None = None  #: FILE of `--out`.
    done_before: int = 0  #: Documents that FILE held when the run began.
    documents: int = 0  #: That this run has read, broken ones included.
    broken: int = 0  #: Without fields: of this run, and of FILE.
    to_review: int = 0  #: Of this run, with a field below `--min-confidence`.
    failing: int = 0  #: Of this run, with a failed check.
    noted: int = 0  #: Of this run, with `notes`.
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  #: Of this run, without loading the model.
    documents_per_hour: float | None = None  #: Null where no document was asked about.
    records: list[RecordObject] = field(default_factory=list)  #: Without `--out`.
    tables: list[str] = field(default_factory=list)  #: Files that `--csv`, `--xlsx` and `--html` wrote.
    forecast: ForecastObject | None = None  #: With `--dry-run`.

    def add(self, record: Record, seconds: float) -> None:
        """Count a record of this run, which has taken so long until now."""
        self.documents += 1
        self.broken += record.error is not None
        self.to_review += bool(record.review)
        self.failing += bool(record.failed_checks)
        self.noted += bool(record.notes)
        self.prompt_tokens += record.prompt_tokens
        self.completion_tokens += record.completion_tokens
        self.seconds = round(seconds, 3)
        if self.completion_tokens and seconds > 0:
            self.documents_per_hour = round(self.documents / seconds * 3600, 1)

    def keep(self, record: Record) -> None:
        """Keep a record to be printed with the object."""
        self.records.append(fill_result(RecordObject, record))
