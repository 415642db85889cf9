"""Draws small images of documents and charts from a seed, with transcripts, questions and exact answers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.drawn_image import DrawnImage, Glyph, Question, Run
from ernie_calibration.images.charts import draw_bar_chart, draw_line_chart
from ernie_calibration.images.form import draw_form
from ernie_calibration.images.invoice import draw_invoice, draw_receipt
from ernie_calibration.images.table import draw_table
from ernie_calibration.images.text_card import draw_text_card
from ernie_calibration.names import NameSource

__all__ = ["KINDS", "DrawnImage", "Glyph", "Question", "Run", "draw_image"]

KINDS: dict[str, Callable[[Random, NameSource, int, int, float], DrawnImage]] = {
    "invoice": draw_invoice,
    "receipt": draw_receipt,
    "form": draw_form,
    "table": draw_table,
    "bar chart": draw_bar_chart,
    "line chart": draw_line_chart,
    "text card": draw_text_card,
}


def draw_image(
    kind: str, seed: int | str, *, width: int, height: int, scale: float = 1.0, held_out: bool = False
) -> DrawnImage:
    """The image of `kind` that `seed` stands for, `width` x `height` page units, drawn `scale` times
    larger.

    Raises KeyError for a kind that is not in KINDS.
    """
    random = Random(f"{kind}/{seed}/{held_out}")
    return KINDS[kind](random, NameSource(random, held_out), width, height, scale)
