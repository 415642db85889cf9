"""Draws scatter charts: groups of points, each far enough from the others to be counted."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from matplotlib.figure import Figure

from ernie_calibration.charts.figure import Theme, dress
from ernie_calibration.charts.series import PLACES, READ, SUBJECTS, UNITS, question
from ernie_calibration.charts.series_charts import MARKERS
from ernie_calibration.drawn_image import Question
from ernie_calibration.names import NameSource, of_world

# Points lie on a grid of STEPS steps each way, at least APART steps from each other in x or in y.
STEPS, APART = 40, 3


@dataclass(frozen=True, slots=True)
class Points:
    """points[g]: of group g, (x, y) in the units of the axes."""

    title: str
    axes: tuple[str, str]
    groups: tuple[str, ...]
    points: tuple[tuple[tuple[int, int], ...], ...]


def make_scatter(random: Random, names: NameSource, figure: Figure, theme: Theme) -> list[Question]:
    """One to three groups; each point may have its coordinates printed beside it."""
    points = draw_points(random, names)
    draw_scatter(figure.add_subplot(), points, theme)
    return ask_points(random, points)


def draw_points(random: Random, names: NameSource) -> Points:
    """One to three groups of 3 to 8 points; the topmost point of all stands out."""
    subjects = random.sample(of_world(SUBJECTS, names.held_out), 2)
    units = random.sample(of_world(UNITS, names.held_out), 2)
    place = random.choice(of_world(PLACES, names.held_out)).format(names.city())
    groups = names.items(random.randint(1, 3))
    scales = (random.choice((1, 5, 25)), random.choice((1, 2, 10)))
    taken: list[tuple[int, int]] = []
    points = []
    for _ in groups:
        mine: list[tuple[int, int]] = []
        wanted = random.randint(3, 8)
        while len(mine) < wanted:
            step = (random.randint(1, STEPS), random.randint(1, STEPS - 4))
            if all(max(abs(step[0] - x), abs(step[1] - y)) >= APART for x, y in taken):
                taken.append(step)
                mine.append(step)
        points.append(mine)
    top = random.randrange(len(groups))
    points[top][0] = (points[top][0][0], STEPS)
    scaled = tuple(tuple((x * scales[0], y * scales[1]) for x, y in sorted(group)) for group in points)
    labels = (f"{subjects[0]} ({units[0]})", f"{subjects[1]} ({units[1]})")
    return Points(f"{subjects[1]} against {subjects[0].lower()} {place}", labels, tuple(groups), scaled)


def draw_scatter(axes: Any, points: Points, theme: Theme) -> None:
    """A collection of markers for each group, in their order."""
    dress(axes, theme, points.title)
    for index, (name, group) in enumerate(zip(points.groups, points.points, strict=True)):
        x, y = zip(*group, strict=True)
        axes.scatter(x, y, 36, color=theme.palette[index], marker=MARKERS[index], label=name)
        if theme.labelled:
            for point in group:
                shown = f"{point[0]}, {point[1]}"
                axes.annotate(shown, point, (4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel(points.axes[0])
    axes.set_ylabel(points.axes[1])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.12)
    axes.figure.legend(loc="outside lower center", ncols=3)


def ask_points(random: Random, points: Points) -> list[Question]:
    """For all points, then counts, the topmost point and the highest value of a group."""
    name, group = random.choice(list(zip(points.groups, points.points, strict=True)))
    xs, ys = zip(*group, strict=True)
    _, top_x, top_group = max((y, x, index) for index, group in enumerate(points.points) for x, y in group)
    total = sum(map(len, points.points))
    spread = f"By how much does the largest x of {name} exceed its smallest?"
    lines = [points.title, f"x: {points.axes[0]}, y: {points.axes[1]}"]
    for each, places in zip(points.groups, points.points, strict=True):
        lines.append(f"{each}: {', '.join(f'({x}, {y})' for x, y in places)}")
    return [
        question("transcript", random.choice(READ), "\n".join(lines)),
        question("chart count", f"How many points belong to {name}?", str(len(group))),
        question("chart count", "How many points are there in all?", str(total)),
        question("chart count", "How many groups of points are shown?", str(len(points.groups))),
        question("chart extreme", "Which group has the point that lies highest?", points.groups[top_group]),
        question("chart value", "At which x does the highest point lie?", str(top_x)),
        question("chart value", f"What is the largest y of {name}?", str(max(ys))),
        question("chart difference", spread, str(max(xs) - min(xs))),
    ]
