"""Draws small images of documents and charts from a seed, with transcripts, questions and exact answers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.drawn_image import (
    PLAIN_LOOK,
    Canvas,
    DrawnImage,
    Look,
    Question,
    Run,
    random_background,
)
from ernie_calibration.images.charts import draw_bar_chart, draw_line_chart
from ernie_calibration.images.forms import draw_form, draw_table, draw_text_card
from ernie_calibration.images.invoice import draw_invoice, draw_receipt
from ernie_calibration.names import NameSource

# Each draws on an empty page and returns the lines of its transcript, and questions.
KINDS: dict[str, Callable[[Random, NameSource, Canvas], tuple[list[Run], list[Question]]]] = {
    "invoice": draw_invoice,
    "receipt": draw_receipt,
    "form": draw_form,
    "table": draw_table,
    "bar chart": draw_bar_chart,
    "line chart": draw_line_chart,
    "text card": draw_text_card,
}


def draw_image(
    kind: str,
    seed: int | str,
    *,
    width: int,
    height: int,
    scale: float = 1.0,
    held_out: bool = False,
    look: Look = PLAIN_LOOK,
) -> DrawnImage:
    """The image of `kind` that `seed` stands for, `width` x `height` page units, drawn `scale` times larger.

    KeyError for a kind that is not in KINDS.
    """
    random = Random(f"{kind}/{seed}/{held_out}")
    page = Canvas(width, height, scale, random_background(random, look), look)
    lines, questions = KINDS[kind](random, NameSource(random, held_out), page)
    return DrawnImage(kind, page.image, width, height, tuple(lines), tuple(questions))
