"""What a generated picture is: an image, its text with positions, and questions with exact answers.

Knows nothing of kinds of documents, of models or of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class Glyph:
    """One printed character and the centre of its cell, in page units (before the page's scale)."""

    character: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Question:
    """A question in plain words, its one exact answer, and the kind under which it is scored."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered page with everything that is known about it.

    `width` and `height` are page units; `image` may be larger by the page's scale.
    `lines` is the transcript, top to bottom.
    """

    kind: str
    image: Image.Image
    width: int
    height: int
    lines: tuple[str, ...]
    glyphs: tuple[Glyph, ...]
    questions: tuple[Question, ...]
