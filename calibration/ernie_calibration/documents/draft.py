"""Begins a document: an empty sheet of some size, names and words of one language, and questions on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ernie_calibration.documents.fonts import Typeface, typefaces_for
from ernie_calibration.documents.language import Language, load_language
from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.documents.sheet import Sheet
from ernie_calibration.drawn_image import DrawnImage, Question, Run, join
from ernie_calibration.names import Choice, of_world

SheetShape = Literal["portrait", "landscape", "strip"]
LONG_SIDES = (700, 1600)
# Height over width.
RATIOS: dict[SheetShape, tuple[float, ...]] = {
    "portrait": (1.414, 1.294),
    "landscape": (0.707, 0.773, 0.62),
    "strip": (1.9, 2.2, 1.6),
}
# Widths of a page in sizes of its letters.
LETTERS_ACROSS: dict[SheetShape, tuple[int, int]] = {
    "portrait": (36, 56),
    "landscape": (48, 72),
    "strip": (22, 30),
}
SMALLEST_LETTERS = 13  # pixels
ENGLISH_SHARE = 0.25  # of questions on documents in other languages


class Asker:
    """Asks questions in the document's language, and now and then in English."""

    def __init__(self, random: Random, language: Language) -> None:
        self._random = random
        self._language = language

    def _ask(self, key: str, kind: str, answer: Run, **places: str) -> Question:
        in_english = self._random.random() < ENGLISH_SHARE
        language = load_language("en") if in_english else self._language
        return Question(kind, self._random.choice(language.questions[key]).format(**places), answer)

    def transcript(self, lines: list[Run]) -> Question:
        """Ask for all that is printed."""
        return self._ask("read", "transcript", join(lines, "\n"))

    def field(self, label: str, value: Run, kind: str = "document field") -> Question:
        """Ask for what stands beside a label."""
        return self._ask("field", kind, value, label=label)

    def item(self, key: str, item: str, value: Run) -> Question:
        """Ask for the `price`, `quantity` or `amount` of a line item."""
        return self._ask(key, "document item", value, item=item)

    def cell(self, row: str, column: str, value: Run) -> Question:
        """Ask for a cell of a table."""
        return self._ask("cell", "document cell", value, row=row, column=column)

    def count(self, number: int) -> Question:
        """Ask for the number of rows without the header."""
        return self._ask("count", "document count", Run.unprinted(str(number)))

    def sender(self, name: Run) -> Question:
        """Ask who made the document."""
        return self._ask("sender", "document name", name)

    def recipient(self, name: Run) -> Question:
        """Ask who it is addressed to."""
        return self._ask("recipient", "document name", name)


@dataclass(frozen=True, slots=True)
class Draft:
    """An empty page and everything that is used to write it."""

    random: Random
    language: Language
    names: DocumentNames
    asker: Asker
    sheet: Sheet
    held_out: bool

    def label(self, key: str) -> str:
        """One of the words for `key`."""
        return self.random.choice(self.language.labels[key])

    def of_world(self, choices: Sequence[Choice]) -> list[Choice]:
        """The `choices` that belong to this document's world."""
        return of_world(choices, self.held_out)

    def count(self, least: int, most: int) -> int:
        """How many rows a table gets where `most` would fit; full pages are the most frequent."""
        most = max(least, most)
        if self.random.random() < 0.7:
            least = max(least, most * 2 // 3)
        return self.random.randint(least, most)

    def finish(self, kind: str, questions: list[Question]) -> DrawnImage:
        """The page as it is, with `questions`, and before them one for the whole transcript."""
        lines = self.sheet.lines
        image = self.sheet.image
        asked = (self.asker.transcript(lines), *questions)
        return DrawnImage(kind, image, image.width, image.height, tuple(lines), asked)


def new_draft(random: Random, language: Language, held_out: bool, shape: SheetShape) -> Draft:
    """A page of a random size of `shape`, in a typeface that has the language's letters."""
    long_side = random.randint(*LONG_SIDES)
    ratio = random.choice(RATIOS[shape])
    width = round(long_side / max(1.0, ratio))
    height = round(width * ratio)
    size = max(SMALLEST_LETTERS, width / random.uniform(*LETTERS_ACROSS[shape]))
    typeface: Typeface = random.choice(of_world(typefaces_for(language), held_out))
    return Draft(
        random,
        language,
        DocumentNames(random, language, held_out),
        Asker(random, language),
        Sheet(random, typeface, width, height, size),
        held_out,
    )
