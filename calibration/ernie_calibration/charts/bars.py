"""Bar charts: upright or lying, one to three series side by side, values printed or read off the axis."""

from __future__ import annotations

from random import Random
from typing import Any

from matplotlib.figure import Figure

from ernie_calibration.charts.figure import Theme, dress, name_ticks
from ernie_calibration.charts.questions import ask
from ernie_calibration.charts.series import Series, draw_series
from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.picture import Question

KIND = "bar chart page"


def make_bars(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Draw, and ask."""
    num_series = random.choice((1, 1, 2, 3))
    series = draw_series(random, names, num_series, random.randint(3, 10 if num_series == 1 else 6))
    draw_bars(figure.add_subplot(), series, theme, lying=random.random() < 0.35)
    return ask(random, series)


def draw_bars(axes: Any, series: Series, theme: Theme, lying: bool) -> None:
    """A container of bars for each series, in their order."""
    dress(axes, theme, series.title)
    thickness = 0.8 / len(series.names)
    for index, name in enumerate(series.names):
        shift = (index - (len(series.names) - 1) / 2) * thickness
        places = [place + shift for place in range(len(series.categories))]
        plot = axes.barh if lying else axes.bar
        bars = plot(places, series.plain(index), thickness * 0.94, color=theme.palette[index], label=name)
        if theme.labelled:
            shown = [series.show(value) for value in series.values[index]]
            axes.bar_label(bars, shown, padding=2, fontsize=8 if len(series.names) > 1 else 9)
    if lying:
        axes.set_yticks(range(len(series.categories)), series.categories)
        axes.invert_yaxis()
        axes.set_xlabel(series.units[0])
        axes.margins(x=0.12)
    else:
        name_ticks(axes, series.categories)
        axes.set_ylabel(series.units[0])
        axes.margins(y=0.12)
    if lying or len(series.names) == 1:
        # A single name may stand below; bars that lie leave no corner free for certain.
        axes.figure.legend(loc="outside lower center", ncols=len(series.names))
    else:
        axes.legend()
