"""Line charts: one to four series over a row of categories, marked or not; one alone may show its values."""

from __future__ import annotations

from random import Random
from typing import Any

from matplotlib.figure import Figure

from ernie_calibration.charts.figure import Theme, dress, name_ticks
from ernie_calibration.charts.questions import ask
from ernie_calibration.charts.series import Series, draw_series
from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.picture import Question

KIND = "line chart page"
MARKERS = ("o", "s", "^", "D")
LINE_STYLES = ("-", "--", "-.", ":")


def make_lines(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Draw, and ask."""
    series = draw_series(random, names, random.randint(1, 4), random.randint(4, 12))
    draw_lines(figure.add_subplot(), series, theme, marked=random.random() < 0.7)
    return ask(random, series)


def draw_lines(axes: Any, series: Series, theme: Theme, marked: bool) -> None:
    """A line for each series, in their order."""
    dress(axes, theme, series.title)
    for index, name in enumerate(series.names):
        values = series.plain(index)
        axes.plot(
            range(len(values)),
            values,
            color=theme.palette[index],
            marker=MARKERS[index] if marked else "",
            linestyle=LINE_STYLES[index] if theme.grid == "dotted" else "-",
            label=name,
        )
        if theme.labelled and len(series.names) == 1:
            for place, (value, whole) in enumerate(zip(values, series.values[index], strict=True)):
                axes.annotate(
                    series.show(whole), (place, value), (0, 6), textcoords="offset points", ha="center"
                )
    axes.margins(y=0.14)
    axes.set_ylim(bottom=0)
    name_ticks(axes, series.categories)
    axes.set_ylabel(series.units[0])
    axes.figure.legend(loc="outside lower center", ncols=2)
