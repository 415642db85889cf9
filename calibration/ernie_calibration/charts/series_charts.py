"""Draws charts of series over categories: bars, lines, pies, stacks, and bars beside a line on two axes."""

from __future__ import annotations

from random import Random
from typing import Any

from matplotlib.figure import Figure

from ernie_calibration.charts.figure import Theme, dress, name_ticks
from ernie_calibration.charts.series import Series, ask_series, draw_series
from ernie_calibration.drawn_image import Question
from ernie_calibration.names import NameSource

MARKERS = ("o", "s", "^", "D")
LINE_STYLES = ("-", "--", "-.", ":")


def make_bars(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Upright or lying, one to three series side by side; values are printed, or read off the axis."""
    num_series = random.choice((1, 1, 2, 3))
    series = draw_series(random, names, num_series, random.randint(3, 10 if num_series == 1 else 6))
    draw_bars(figure.add_subplot(), series, theme, lying=random.random() < 0.35)
    return ask_series(random, series)


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
            axes.bar_label(bars, series.shown(index), padding=2, fontsize=8 if len(series.names) > 1 else 9)
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


def make_lines(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """One to four series, with markers or without; a single one may show its values."""
    series = draw_series(random, names, random.randint(1, 4), random.randint(4, 12))
    draw_lines(figure.add_subplot(), series, theme, marked=random.random() < 0.7)
    return ask_series(random, series)


def draw_lines(axes: Any, series: Series, theme: Theme, marked: bool) -> None:
    """A line for each series, in their order."""
    dress(axes, theme, series.title)
    for index, name in enumerate(series.names):
        marker = MARKERS[index] if marked else ""
        style = LINE_STYLES[index] if theme.grid == "dotted" else "-"
        values, color = series.plain(index), theme.palette[index]
        axes.plot(range(len(values)), values, color=color, marker=marker, linestyle=style, label=name)
        if theme.labelled and len(series.names) == 1:
            for place, shown in enumerate(series.shown(index)):
                point = (place, values[place])
                axes.annotate(shown, point, (0, 6), textcoords="offset points", ha="center")
    axes.margins(y=0.14)
    _name_axes(axes, series)


def _name_axes(axes: Any, series: Series) -> None:
    """Categories below, the unit at the left, from 0 on, and a legend of the series."""
    axes.set_ylim(bottom=0)
    name_ticks(axes, series.categories)
    axes.set_ylabel(series.units[0])
    axes.figure.legend(loc="outside lower center", ncols=2)


def make_pie(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Wedges or a ring; values are always printed, as nothing else shows them."""
    series = draw_series(random, names, 1, random.randint(3, 7))
    draw_pie(figure.add_subplot(), series, theme, is_ring=random.random() < 0.4, start=random.uniform(0, 360))
    return ask_series(random, series)


def draw_pie(axes: Any, series: Series, theme: Theme, is_ring: bool, start: float) -> None:
    """A wedge for each category, in their order; its value stands in it, or with its name beside it."""
    dress(axes, theme, series.title)
    shown = series.shown(0)
    wedges, *_ = axes.pie(
        series.plain(0),
        labels=shown if theme.labelled else None,
        colors=theme.palette,
        startangle=start,
        wedgeprops={"width": 0.45 if is_ring else 1.0, "edgecolor": theme.paper},
    )
    named = [f"{category}: {value}" for category, value in zip(series.categories, shown, strict=True)]
    legend = series.categories if theme.labelled else named
    axes.figure.legend(wedges, legend, loc="outside right center")
    axes.set_xlabel(f"{series.names[0]} ({series.units[0]})")


def make_stacked(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Bars or areas on top of each other; bars may have their values printed in them."""
    series = draw_series(random, names, random.randint(2, 4), random.randint(3, 8))
    draw_stacked(figure.add_subplot(), series, theme, as_areas=random.random() < 0.3)
    return ask_series(random, series)


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
                box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0, "alpha": 0.7}
                axes.bar_label(bars, series.shown(index), label_type="center", fontsize=8, bbox=box)
            bottom = [low + value for low, value in zip(bottom, stacks[index], strict=True)]
    _name_axes(axes, series)


def make_dual(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """Bars against the left axis, a line against the right one, each with its own unit."""
    series = draw_series(random, names, 2, random.randint(4, 9), units_differ=True)
    draw_dual(figure.add_subplot(), series, theme)
    return ask_series(random, series)


def draw_dual(axes: Any, series: Series, theme: Theme) -> Any:
    """The first series as bars, the second as a line on the axes that are returned."""
    dress(axes, theme, series.title)
    places = range(len(series.categories))
    bars = axes.bar(places, series.plain(0), 0.6, color=theme.palette[0], label=series.names[0])
    if theme.labelled:
        axes.bar_label(bars, series.shown(0), label_type="center", fontsize=8, color="white")
    name_ticks(axes, series.categories)
    axes.set_ylabel(f"{series.names[0]} ({series.units[0]})")
    other = axes.twinx()
    other.plot(places, series.plain(1), color=theme.palette[1], marker="o", label=series.names[1])
    other.set_ylabel(f"{series.names[1]} ({series.units[1]})")
    other.set_ylim(bottom=0)
    axes.figure.legend(loc="outside lower center", ncols=2)
    return other
