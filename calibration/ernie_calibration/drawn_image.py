"""Defines what a generated image is: pixels, text with positions, and questions with exact answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class Glyph:
    """One printed character and the centre of its cell, in page units (before the page's scale)."""

    character: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Run:
    """Text with the glyph of each of its characters; None for a character that is not printed."""

    text: str
    glyphs: tuple[Glyph | None, ...]

    @classmethod
    def unprinted(cls, text: str) -> Run:
        """Text that no page shows."""
        return cls(text, (None,) * len(text))

    def part(self, text: str) -> Run:
        """The last occurrence of `text`. ValueError if there is none."""
        start = self.text.rindex(text)
        return Run(text, self.glyphs[start : start + len(text)])


def spelled_out(*runs: Run) -> tuple[tuple[str, Run], ...]:
    """Mentions of runs whose own words occur in the question, in any case."""
    return tuple((run.text, run) for run in runs)


def join(runs: Sequence[Run], separator: str) -> Run:
    """All runs one after the other; the separators are not printed."""
    glyphs: list[Glyph | None] = []
    for index, run in enumerate(runs):
        glyphs += [None] * len(separator) * (index > 0)
        glyphs += run.glyphs
    return Run(separator.join(run.text for run in runs), tuple(glyphs))


@dataclass(frozen=True, slots=True)
class Question:
    """A question in plain words, its one exact answer as it is printed, and the kind it is scored under.

    `mentions`: words of the question and what they name on the page. "age" names the printed "Age", "highest"
    the value of the highest bar.
    """

    kind: str
    text: str
    printed: Run
    mentions: tuple[tuple[str, Run], ...] = ()

    @property
    def answer(self) -> str:
        """The exact answer."""
        return self.printed.text


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A rendered page with everything known about it.

    `width` and `height` are page units; `image` may be larger by the page's scale.
    `lines` is the transcript, top to bottom.
    """

    kind: str
    image: Image.Image
    width: int
    height: int
    lines: tuple[Run, ...]
    questions: tuple[Question, ...]

    @property
    def transcript(self) -> str:
        """All lines, top to bottom."""
        return "\n".join(line.text for line in self.lines)

    @property
    def glyphs(self) -> tuple[Glyph, ...]:
        """All printed glyphs, in the order of the transcript."""
        return tuple(glyph for line in self.lines for glyph in line.glyphs if glyph is not None)
