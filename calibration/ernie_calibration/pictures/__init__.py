"""Seeded pictures of documents and charts with transcripts, questions and exact answers.

Own the registry of kinds; each kind lives in the file of its name. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.pictures.bar_chart import make_bar_chart
from ernie_calibration.pictures.form import make_form
from ernie_calibration.pictures.invoice import make_invoice
from ernie_calibration.pictures.line_chart import make_line_chart
from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.picture import Glyph, Picture, Question, Run
from ernie_calibration.pictures.receipt import make_receipt
from ernie_calibration.pictures.table import make_table
from ernie_calibration.pictures.text_card import make_text_card

__all__ = ["KINDS", "Glyph", "Picture", "Question", "Run", "make_picture"]

Maker = Callable[[Random, NameSource, int, int, float], Picture]
KINDS: dict[str, Maker] = {
    "invoice": make_invoice,
    "receipt": make_receipt,
    "form": make_form,
    "table": make_table,
    "bar chart": make_bar_chart,
    "line chart": make_line_chart,
    "text card": make_text_card,
}


def make_picture(
    kind: str, seed: int | str, *, width: int, height: int, scale: float = 1.0, held_out: bool = False
) -> Picture:
    """The picture of `kind` that `seed` stands for, `width` x `height` page units, drawn `scale` times
    larger.

    Raises KeyError for a kind that is not in KINDS.
    """
    random = Random(f"{kind}/{seed}/{held_out}")
    return KINDS[kind](random, NameSource(random, held_out), width, height, scale)
