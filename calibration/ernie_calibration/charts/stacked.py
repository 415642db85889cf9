"""Stacked charts: series upon each other as bars or as areas; bars may have their values printed in them."""

from __future__ import annotations

from random import Random
from typing import Any

from matplotlib.figure import Figure

from ernie_calibration.charts.figure import Theme, dress, name_ticks
from ernie_calibration.charts.questions import ask
from ernie_calibration.charts.series import Series, draw_series
from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.picture import Question

KIND = "stacked chart page"


def make_stacked(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Draw, and ask."""
    series = draw_series(random, names, random.randint(2, 4), random.randint(3, 8))
    draw_stacked(figure.add_subplot(), series, theme, as_areas=random.random() < 0.3)
    return ask(random, series)


def draw_stacked(axes: Any, series: Series, theme: Theme, as_areas: bool) -> None:
    """The first series lies at the bottom."""
    dress(axes, theme, series.title)
    places = range(len(series.categories))
    stacks = [series.plain(index) for index in range(len(series.names))]
    if as_areas:
        axes.stackplot(places, *stacks, labels=series.names, colors=theme.palette)
    else:
        bottom = [0.0] * len(places)
        for index, name in enumerate(series.names):
            bars = axes.bar(places, stacks[index], 0.7, bottom, color=theme.palette[index], label=name)
            if theme.labelled:
                shown = [series.show(value) for value in series.values[index]]
                box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0, "alpha": 0.7}
                axes.bar_label(bars, shown, label_type="center", fontsize=8, bbox=box)
            bottom = [low + value for low, value in zip(bottom, stacks[index], strict=True)]
    axes.set_ylim(bottom=0)
    name_ticks(axes, series.categories)
    axes.set_ylabel(series.units[0])
    axes.figure.legend(loc="outside lower center", ncols=2)
