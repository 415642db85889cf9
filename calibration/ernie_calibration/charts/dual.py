"""Charts with two axes: bars against the left one, a line against the right one, each with its own unit."""

from __future__ import annotations

from random import Random
from typing import Any

from matplotlib.figure import Figure

from ernie_calibration.charts.figure import Theme, dress, name_ticks
from ernie_calibration.charts.questions import ask
from ernie_calibration.charts.series import Series, draw_series
from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.picture import Question

KIND = "dual axis chart page"


def make_dual(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Draw, and ask."""
    series = draw_series(random, names, 2, random.randint(4, 9), units_differ=True)
    draw_dual(figure.add_subplot(), series, theme)
    return ask(random, series)


def draw_dual(axes: Any, series: Series, theme: Theme) -> Any:
    """The first series as bars, the second as a line on the axes that are returned."""
    dress(axes, theme, series.title)
    bars = axes.bar(
        range(len(series.categories)), series.plain(0), 0.6, color=theme.palette[0], label=series.names[0]
    )
    if theme.labelled:
        shown = [series.show(value) for value in series.values[0]]
        axes.bar_label(bars, shown, label_type="center", fontsize=8, color="white")
    name_ticks(axes, series.categories)
    axes.set_ylabel(f"{series.names[0]} ({series.units[0]})")
    other = axes.twinx()
    other.plot(
        range(len(series.categories)),
        series.plain(1),
        color=theme.palette[1],
        marker="o",
        label=series.names[1],
    )
    other.set_ylabel(f"{series.names[1]} ({series.units[1]})")
    other.set_ylim(bottom=0)
    axes.figure.legend(loc="outside lower center", ncols=2)
    return other
