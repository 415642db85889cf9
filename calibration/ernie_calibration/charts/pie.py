"""Pie charts: wedges or a ring, categories in a legend, values always printed: nothing else shows them."""

from __future__ import annotations

from random import Random
from typing import Any

from matplotlib.figure import Figure

from ernie_calibration.charts.figure import Theme, dress
from ernie_calibration.charts.questions import ask
from ernie_calibration.charts.series import Series, draw_series
from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.picture import Question

KIND = "pie chart page"


def make_pie(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Draw, and ask."""
    series = draw_series(random, names, 1, random.randint(3, 7))
    draw_pie(figure.add_subplot(), series, theme, is_ring=random.random() < 0.4, start=random.uniform(0, 360))
    return ask(random, series)


def draw_pie(axes: Any, series: Series, theme: Theme, is_ring: bool, start: float) -> None:
    """A wedge for each category, in their order; its value stands in it, or with its name beside it."""
    dress(axes, theme, series.title)
    shown = [series.show(value) for value in series.values[0]]
    wedges, *_ = axes.pie(
        series.plain(0),
        labels=shown if theme.labelled else None,
        colors=theme.palette,
        startangle=start,
        wedgeprops={"width": 0.45 if is_ring else 1.0, "edgecolor": theme.paper},
    )
    legend = [
        f"{c}" if theme.labelled else f"{c}: {v}" for c, v in zip(series.categories, shown, strict=True)
    ]
    axes.figure.legend(wedges, legend, loc="outside right center")
    axes.set_xlabel(f"{series.names[0]} ({series.units[0]})")
