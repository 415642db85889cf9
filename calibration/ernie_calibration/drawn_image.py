"""Draws text and shapes on a page, with the place of every glyph, and defines what a drawn image is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random

import matplotlib
from PIL import Image, ImageDraw, ImageFont

FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "built-in")
MORE_FONT_FILES = (
    *FONT_FILES,
    *("DejaVuSans-Oblique.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSansMono-Bold.ttf"),
    *("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf"),
)
LINE_PITCH = 28  # page units: one text line to a row of image tokens
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom
SHARE_BEFORE = {"left": 0.0, "middle": 0.5, "right": 1.0}  # of aligned text: what lies before its x


@dataclass(frozen=True, slots=True)
class Glyph:
    """One printed character, the centre of its cell and the box of its ink, in page units (before the page's
    scale)."""

    character: str
    x: float
    y: float
    box: Box

    def moved(self, x: float, y: float) -> Glyph:
        """The glyph on a page on which its own page begins at (x, y)."""
        left, top, right, bottom = self.box
        return Glyph(self.character, self.x + x, self.y + y, (left + x, top + y, right + x, bottom + y))


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

    def moved(self, x: float, y: float) -> Run:
        """The text on a page on which its own page begins at (x, y)."""
        return Run(self.text, tuple(None if glyph is None else glyph.moved(x, y) for glyph in self.glyphs))

    @property
    def box(self) -> Box:
        """Around the ink of all its glyphs, in page units. ValueError where nothing is printed."""
        lefts, tops, rights, bottoms = zip(*(glyph.box for glyph in self.glyphs if glyph), strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)


def join(runs: Sequence[Run], separator: str) -> Run:
    """All runs one after the other; the separators are not printed."""
    glyphs: list[Glyph | None] = []
    for index, run in enumerate(runs):
        glyphs += [None] * len(separator) * (index > 0)
        glyphs += run.glyphs
    return Run(separator.join(run.text for run in runs), tuple(glyphs))


def as_places(text: str, run: Run) -> Run:
    """A text with a list [left, top, right, bottom] in it, as if its digits were read off the ends of `run`.

    Those of left and top belong to the first glyph, the others to the last: where a model has to look.
    """
    printed = [glyph for glyph in run.glyphs if glyph is not None]
    glyphs: list[Glyph | None] = [None] * len(text)
    start, end = text.index("["), text.index("]")
    num_commas = 0
    for index in range(start, end):
        num_commas += text[index] == ","
        if text[index].isdigit() and printed:
            glyphs[index] = printed[0 if num_commas < 2 else -1]
    return Run(text, tuple(glyphs))


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

    @classmethod
    def about(cls, kind: str, text: str, answer: Run, *named: Run) -> Question:
        """A question whose text holds the words of each of `named`, in any case."""
        return cls(kind, text, answer, tuple((run.text, run) for run in named))

    @property
    def answer(self) -> str:
        """The exact answer."""
        return self.printed.text


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A rendered page with everything known about it; `lines` is the transcript, top to bottom.

    `width` and `height` are page units; `image` may be larger by the page's scale.
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

    def line_of(self, question: Question) -> Run:
        """The line that holds the answer; of several, the one with most words of the question."""
        words = set(question.text.strip("?.").split())
        holding = [line for line in self.lines if question.answer in line.text]
        return max(holding, key=lambda line: len(words & set(line.text.split())), default=Run("", ()))

    @property
    def glyphs(self) -> tuple[Glyph, ...]:
        """All printed glyphs, in the order of the transcript."""
        return tuple(glyph for line in self.lines for glyph in line.glyphs if glyph is not None)


@lru_cache(maxsize=512)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's data folder, or Pillow's own scalable one, at `size` pixels."""
    if name == "built-in":
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / name), size)


@lru_cache(maxsize=8192)
def ink_heights(face: ImageFont.FreeTypeFont, letter: str) -> tuple[float, float]:
    """Top and bottom of a letter's ink in pixels, counted from the middle of its line."""
    _, top, _, bottom = face.getbbox(letter, anchor="lm")
    return top, bottom


@dataclass(frozen=True, slots=True)
class Look:
    """What pages may look like: their fonts, the heights of letters in page units, and how many are dark."""

    fonts: tuple[str, ...] = FONT_FILES
    sizes: tuple[float, float] = (17.0, 21.0)
    dark_share: float = 0.0


PLAIN_LOOK = Look()
VARIED_LOOK = Look(MORE_FONT_FILES, (14.0, 22.0), 0.12)


class Canvas:
    """A sheet of `width` x `height` page units, drawn `scale` times larger."""

    def __init__(
        self, width: int, height: int, scale: float, background: Color, look: Look = PLAIN_LOOK
    ) -> None:
        self.look = look
        self.is_dark = sum(background) < 384
        self.width = width
        self.height = height
        self.scale = scale
        self.image = Image.new("RGB", (round(width * scale), round(height * scale)), background)
        self.draw = ImageDraw.Draw(self.image)

    def text_width(self, text: str, font: str, size: float) -> float:
        """Width of `text` in page units."""
        return load_font(font, round(size * self.scale)).getlength(text) / self.scale

    def text(
        self, x: float, y: float, text: str, font: str, size: float, ink: Color, align: str = "left"
    ) -> Run:
        """Draw one line whose vertical middle is `y`; `x` is its left, middle or right end by `align`."""
        face = load_font(font, round(size * self.scale))
        left = x * self.scale - face.getlength(text) * SHARE_BEFORE[align]
        self.draw.text((left, y * self.scale), text, font=face, fill=ink, anchor="lm")
        ends = (left + face.getlength(text[:length]) for length in range(len(text) + 1))
        glyphs = zip(text, pairwise(ends), strict=True)
        return Run(
            text,
            tuple(None if letter == " " else self._glyph(letter, span, y, face) for letter, span in glyphs),
        )

    def _glyph(self, letter: str, span: tuple[float, float], y: float, face: ImageFont.FreeTypeFont) -> Glyph:
        """A letter that takes the pixels of `span` across, on a line whose middle is `y`."""
        start, end = (place / self.scale for place in span)
        above, below = ink_heights(face, letter)
        box = (start, y + above / self.scale, end, y + below / self.scale)
        return Glyph(letter, (start + end) / 2, y, box)

    def rectangle(self, box: Box, fill: Color | None, outline: Color | None = None) -> None:
        """A box in page units."""
        self.draw.rectangle([value * self.scale for value in box], fill=fill, outline=outline)

    def line(self, points: list[tuple[float, float]], color: Color, width: float) -> None:
        """A polyline in page units."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(scaled, fill=color, width=max(1, round(width * self.scale)))

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        """A filled circle."""
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse([value * self.scale for value in box], fill=color)


def random_background(random: Random, look: Look = PLAIN_LOOK) -> Color:
    """White, a light paper tint, or dark."""
    if look.dark_share and random.random() < look.dark_share:
        return (random.randint(0, 70), random.randint(0, 70), random.randint(0, 90))
    if random.random() < 0.5:
        return (255, 255, 255)
    return (random.randint(232, 255), random.randint(232, 255), random.randint(228, 255))


def random_ink(random: Random, *, on_dark: bool = False) -> Color:
    """Black, or a dark colour with enough contrast on any background of ours; light on a dark one."""
    if on_dark:
        return (random.randint(205, 255), random.randint(205, 255), random.randint(190, 255))
    if random.random() < 0.5:
        return (0, 0, 0)
    return (random.randint(0, 80), random.randint(0, 70), random.randint(0, 90))


@dataclass(frozen=True, slots=True)
class Style:
    """How text on a page looks. `size` is the font's height, `pitch` that of a line, in page units."""

    font: str
    bold: str
    size: float
    ink: Color
    pitch: float
    left: float


def count_lines(height: float) -> int:
    """Lines of text that a page of `height` has room for."""
    return round(height / LINE_PITCH)


def random_style(random: Random, page: Canvas) -> Style:
    """A style whose lines fill the page exactly, so that every line lies on one row of image tokens."""
    font = random.choice(page.look.fonts)
    bold = "DejaVuSans-Bold.ttf" if font == "DejaVuSans.ttf" and random.random() < 0.5 else font
    size = random.uniform(*page.look.sizes)
    pitch = page.height / count_lines(page.height)
    ink = random_ink(random, on_dark=page.is_dark)
    return Style(font, bold, size, ink, pitch, random.uniform(6.0, 14.0))


def fit_size(page: Canvas, text: str, font: str, size: float, room: float) -> float:
    """The largest size up to `size` at which `text` is at most `room` wide (never under 12)."""
    while size > 12.0 and page.text_width(text, font, size) > room:
        size -= 0.5
    return size
