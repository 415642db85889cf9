"""Draws page-sized charts by matplotlib from a seed; their transcripts are the data behind them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from matplotlib.figure import Figure

from ernie_calibration.charts import series_charts
from ernie_calibration.charts.figure import Theme, new_figure, random_theme, render
from ernie_calibration.charts.scatter import make_scatter
from ernie_calibration.drawn_image import DrawnImage, Question, Run
from ernie_calibration.names import NameSource

KINDS: dict[str, Callable[[Random, NameSource, Figure, Theme], list[Question]]] = {
    "bar chart page": series_charts.make_bars,
    "line chart page": series_charts.make_lines,
    "pie chart page": series_charts.make_pie,
    "scatter chart page": make_scatter,
    "stacked chart page": series_charts.make_stacked,
    "dual axis chart page": series_charts.make_dual,
}


def draw_chart(kind: str, seed: int | str, *, held_out: bool = False) -> DrawnImage:
    """The chart of `kind` that `seed` stands for, 700 to 1600 pixels wide.

    Held-out charts have names, subjects, units and themes that no other chart has. KeyError for a kind that
    is not in KINDS.
    """
    random = Random(f"{kind}/{seed}/{held_out}")
    theme = random_theme(random, held_out)
    figure = new_figure(random, theme)
    questions = KINDS[kind](random, NameSource(random, held_out), figure, theme)
    image = render(figure, theme)
    text = tuple(map(Run.unprinted, questions[0].answer.split("\n")))
    return DrawnImage(kind, image, image.width, image.height, text, tuple(questions))
