"""Draws large sheets of small print from a seed: cards under headings that alone can be read from afar.

A question about one of them asks for a closer look at its card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from ernie_calibration.drawn_image import (
    PLAIN_LOOK,
    Box,
    Canvas,
    DrawnImage,
    Look,
    Question,
    Run,
    fit_size,
    random_background,
    random_ink,
)
from ernie_calibration.images import draw_image
from ernie_calibration.names import NameSource, different
from ernie_calibration.skills.fields import thousandths
from ernie_local.text.reasoning import ToolCall

CARD_KINDS = ("form", "receipt", "table", "invoice")
QUESTION_FORMS = ("{title}: {question}", "In {title}: {question}", "Look at {title}. {question}")
ZOOM_THOUGHTS = (
    "The print is too small. I zoom into {}.",
    "I cannot read it. I look closer at {}.",
    "{} is too small to read. I zoom in.",
)
READABLE_THOUGHTS = ("I can read it.", "The print is large enough.")
HEADING_HEIGHT = 64
_HEADING_SIZES = (50.0, 60.0)
_GAPS = (8, 14, 20, 26)
_MOST_LETTERS = 8


@dataclass(frozen=True, slots=True)
class Card:
    """A part of a sheet. `box`: its pixels on the sheet, without the heading; `drawn`: what is there."""

    heading: Run
    box: tuple[int, int, int, int]
    drawn: DrawnImage


@dataclass(frozen=True, slots=True)
class DrawnSheet:
    """A sheet; its page units are its pixels."""

    image: Image.Image
    cards: tuple[Card, ...]

    def thousandths(self, card: Card) -> tuple[int, int, int, int]:
        """Where a card is, as a model writes it."""
        box: Box = card.box
        return thousandths(box, self.image.width, self.image.height)


@dataclass(frozen=True, slots=True)
class SheetQuestion:
    """A question about a card. `question.printed` lies on the card's own page, as do its mentions.

    text: the question with the card's heading in it.
    """

    text: str
    card: Card
    question: Question


def draw_sheet(
    seed: int | str,
    *,
    columns: int,
    rows: int,
    card_size: tuple[int, int],
    held_out: bool = False,
    look: Look = PLAIN_LOOK,
) -> DrawnSheet:
    """`columns` x `rows` cards of (width, height) `card_size` pixels, each under its heading."""
    random = Random(f"sheet/{seed}/{held_out}")
    names = NameSource(random, held_out)
    (width, height), gap = card_size, random.choice(_GAPS)
    left_margin, top_margin = random.choice(_GAPS), random.choice(_GAPS)
    page = Canvas(
        2 * left_margin + columns * (width + gap) - gap,
        top_margin + rows * (height + HEADING_HEIGHT) + gap,
        1.0,
        random_background(random, look),
        look,
    )
    ink, font = random_ink(random, on_dark=page.is_dark), random.choice(look.fonts)
    headings = different(columns * rows, lambda: _heading(random, names))
    cards = []
    for index, heading in enumerate(headings):
        row, column = divmod(index, columns)
        x, y = left_margin + column * (width + gap), top_margin + row * (height + HEADING_HEIGHT)
        size = fit_size(page, heading, font, random.uniform(*_HEADING_SIZES), width)
        heading_run = page.text(x + 4, y + HEADING_HEIGHT / 2, heading, font, size, ink)
        drawn = draw_image(
            random.choice(CARD_KINDS),
            random.getrandbits(60),
            width=width,
            height=height,
            held_out=held_out,
            look=look,
        )
        top = y + HEADING_HEIGHT
        page.image.paste(drawn.image, (x, top))
        cards.append(Card(heading_run, (x, top, x + width, top + height), drawn))
    return DrawnSheet(page.image, tuple(cards))


def _heading(random: Random, names: NameSource) -> str:
    while True:
        name = names.city() if random.random() < 0.5 else names.item()
        if len(name) <= _MOST_LETTERS:
            return name


def ask_sheet(random: Random, sheet: DrawnSheet, count: int) -> list[SheetQuestion]:
    """Up to `count` questions, each about another card."""
    cards: Sequence[Card] = random.sample(sheet.cards, min(count, len(sheet.cards)))
    asked = []
    for card in cards:
        question = random.choice(card.drawn.questions)
        text = random.choice(QUESTION_FORMS).format(title=card.heading.text, question=question.text)
        asked.append(SheetQuestion(text, card, question))
    return asked


def zoom_call(box: tuple[int, int, int, int], label: str) -> ToolCall:
    """A call of the published zoom tool that asks for `box`, in thousandths of the image."""
    from ernie_local.session.image_tools import ZOOM_NAME  # with torch, which drawing does not need

    return ToolCall(ZOOM_NAME, {"bbox_2d": list(box), "label": label})
