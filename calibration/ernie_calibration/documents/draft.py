"""What every kind of document is begun with: a sheet, names, words of one language, and someone to ask.

Owns the sizes of pages. Knows nothing of what a document says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ernie_calibration.documents.fonts import Typeface, typefaces_for
from ernie_calibration.documents.language import Language
from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.documents.questions import Asker
from ernie_calibration.documents.sheet import Sheet
from ernie_calibration.pictures.picture import Picture, Question
from ernie_calibration.worlds import Choice, of_world

Shape = Literal["portrait", "landscape", "strip"]
LONG_SIDES = (700, 1600)
# Height over width.
RATIOS: dict[Shape, tuple[float, ...]] = {
    "portrait": (1.414, 1.294),
    "landscape": (0.707, 0.773, 0.62),
    "strip": (1.9, 2.2, 1.6),
}
# Widths of a page in sizes of its letters.
LETTERS_ACROSS: dict[Shape, tuple[int, int]] = {
    "portrait": (36, 56),
    "landscape": (48, 72),
    "strip": (22, 30),
}
SMALLEST_LETTERS = 13  # pixels


@dataclass(frozen=True, slots=True)
class Draft:
    """An empty page and all that writes it."""

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
        """What of `choices` belongs to this document's world."""
        return of_world(choices, self.held_out)

    def count(self, least: int, most: int) -> int:
        """How many rows a table gets, where `most` would fit: the fuller pages are the more frequent ones."""
        most = max(least, most)
        if self.random.random() < 0.7:
            least = max(least, most * 2 // 3)
        return self.random.randint(least, most)

    def picture(self, kind: str, questions: list[Question]) -> Picture:
        """The page as it is, with `questions`, and before them one for the whole transcript."""
        lines = self.sheet.lines
        image = self.sheet.image
        asked = (self.asker.transcript(lines), *questions)
        return Picture(kind, image, image.width, image.height, tuple(lines), asked)


def new_draft(random: Random, language: Language, held_out: bool, shape: Shape) -> Draft:
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
