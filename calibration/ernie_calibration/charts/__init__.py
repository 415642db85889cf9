"""Seeded charts by matplotlib, page-sized, with their data as transcripts, questions and answers.

Own the registry of kinds; each kind lives in the file of its name. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from matplotlib.figure import Figure

from ernie_calibration.charts import bars, dual, lines, pie, scatter, stacked
from ernie_calibration.charts.figure import Theme, new_figure, random_theme, render
from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.picture import Picture, Question, Run

__all__ = ["KINDS", "make_chart"]

Maker = Callable[[Random, NameSource, Figure, Theme], list[Question]]
KINDS: dict[str, Maker] = {
    bars.KIND: bars.make_bars,
    lines.KIND: lines.make_lines,
    pie.KIND: pie.make_pie,
    scatter.KIND: scatter.make_scatter,
    stacked.KIND: stacked.make_stacked,
    dual.KIND: dual.make_dual,
}


def make_chart(kind: str, seed: int | str, *, held_out: bool = False) -> Picture:
    """The chart of `kind` that `seed` stands for, 700 to 1600 pixels wide.

    Its transcript is the data behind it. The names, subjects, units and themes of held-out charts are never
    used for others. Raises KeyError for a kind that is not in KINDS.
    """
    random = Random(f"{kind}/{seed}/{held_out}")
    theme = random_theme(random, held_out)
    figure = new_figure(random, theme)
    questions = KINDS[kind](random, NameSource(random, held_out), figure, theme)
    image = render(figure, theme)
    text = tuple(map(Run.unprinted, questions[0].answer.split("\n")))
    return Picture(kind, image, image.width, image.height, text, tuple(questions))
