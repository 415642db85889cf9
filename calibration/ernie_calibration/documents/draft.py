"""Holds a document while it is written: a sheet of some size, names and words of one language."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Literal

from ernie_calibration.documents.language import Language, load_language, typefaces_for
from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.documents.sheet import Sheet
from ernie_calibration.drawn_image import DrawnImage, Question, Run, join
from ernie_calibration.names import of_world

SheetShape = Literal["portrait", "landscape", "strip"]
LONG_SIDES = (700, 1600)
# Height over width, and the least and the largest width of a page in sizes of its letters.
SHAPES: dict[SheetShape, tuple[tuple[float, ...], tuple[int, int]]] = {
    "portrait": ((1.414, 1.294), (36, 56)),
    "landscape": ((0.707, 0.773, 0.62), (48, 72)),
    "strip": ((1.9, 2.2, 1.6), (22, 30)),
}
SMALLEST_LETTERS = 13  # pixels
ENGLISH_SHARE = 0.25  # of questions on documents in other languages
# What a question is scored under, by its key in the language's file, unless its caller says more.
KIND_OF_KEY = {
    "read": "transcript",
    "field": "document field",
    "price": "document item",
    "quantity": "document item",
    "amount": "document item",
    "cell": "document cell",
    "count": "document count",
    "sender": "document name",
    "recipient": "document name",
}


class Draft:
    """A page of a random size of `shape`, in a typeface that has the language's letters; empty at first."""

    def __init__(self, random: Random, language: Language, held_out: bool, shape: SheetShape) -> None:
        self.random = random
        self.language = language
        long_side = random.randint(*LONG_SIDES)
        ratios, letters_across = SHAPES[shape]
        ratio = random.choice(ratios)
        width = round(long_side / max(1.0, ratio))
        height = round(width * ratio)
        size = max(SMALLEST_LETTERS, width / random.uniform(*letters_across))
        typeface = random.choice(of_world(typefaces_for(language), held_out))
        self.names = DocumentNames(random, language, held_out)
        self.sheet = Sheet(random, typeface, width, height, size)

    def label(self, key: str) -> str:
        """One of the words for `key`."""
        return self.random.choice(self.language.labels[key])

    def labelled(self, values: Mapping[str, str]) -> list[tuple[str, str]]:
        """`values` by key, each with one of the words for its key before it."""
        return [(self.label(key), value) for key, value in values.items()]

    def count(self, least: int, most: int) -> int:
        """How many rows a table gets where `most` would fit; full pages are the most frequent."""
        most = max(least, most)
        if self.random.random() < 0.7:
            least = max(least, most * 2 // 3)
        return self.random.randint(least, most)

    def ask(self, key: str, answer: Run, kind: str = "", **places: str) -> Question:
        """One of the language's questions for `key`, now and then in English; `places`: what it names."""
        in_english = self.random.random() < ENGLISH_SHARE
        language = load_language("en") if in_english else self.language
        text = self.random.choice(language.questions[key]).format(**places)
        return Question(kind or KIND_OF_KEY[key], text, answer)

    def ask_count(self, number: int) -> Question:
        """Ask for the number of a table's rows without the header."""
        return self.ask("count", Run.unprinted(str(number)))

    def finish(self, kind: str, questions: list[Question]) -> DrawnImage:
        """The page as it is, with `questions`, and before them one for the whole transcript."""
        lines, image = tuple(self.sheet.lines), self.sheet.page.image
        asked = (self.ask("read", join(lines, "\n")), *questions)
        return DrawnImage(kind, image, image.width, image.height, lines, asked)
