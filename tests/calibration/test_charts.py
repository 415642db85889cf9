"""Charts: equal seeds draw the same, what is drawn is the data, answers follow from the transcript alone."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random
from typing import Any

import numpy
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ernie_calibration import charts
from ernie_calibration.charts import KINDS, draw_chart, figure
from ernie_calibration.charts.figure import is_inside, new_figure, random_theme
from ernie_calibration.charts.scatter import draw_points, draw_scatter
from ernie_calibration.charts.series import Series, draw_series
from ernie_calibration.charts.series_charts import draw_bars, draw_dual, draw_lines, draw_pie, draw_stacked
from ernie_calibration.drawn_image import DrawnImage, Question
from ernie_calibration.names import NameSource, is_held_out
from ernie_calibration.scoring import METRIC_OF_KIND

# A chart of each world by default.
SEEDS = [range(2), pytest.param(range(2, 6), marks=pytest.mark.slow)]
WITH_SERIES = [kind for kind in KINDS if kind != "scatter chart page"]
Data = dict[str, dict[str, float]]  # value by series name and category


def read_data(drawn: DrawnImage) -> Data:
    """The data as anybody would read them from the transcript."""
    lines = drawn.transcript.split("\n")
    data: Data = {}
    if " | " in lines[1]:
        names = [name.rsplit(" (", 1)[0] for name in lines[1].split(" | ")[1:]]
        for line in lines[2:]:
            category, *row = line.split(" | ")
            for name, value in zip(names, row, strict=True):
                data.setdefault(name, {})[category] = float(value)
        return data
    for line in lines[1:]:
        name, values = line.rstrip(".").split(": ", 1)
        pairs = (pair.rsplit(" ", 1) for pair in values.split(", "))
        data[name.rsplit(" (", 1)[0]] = {category: float(value) for category, value in pairs}
    return data


def mentioned(words: list[str], text: str) -> list[str]:
    return [word for word in words if re.search(rf"\b{re.escape(word)}\b", text)]


def worked_out(question: Question, data: Data) -> str | float:
    """The answer by the words of the question; a name as text, all else as a number."""
    text = question.text
    categories = list(next(iter(data.values())))
    if "series does the" in text or "series are" in text:
        return len(data)
    if question.kind == "chart count" and "above" not in text:
        return len(categories)
    (name,) = mentioned(list(data), text)
    values = data[name]
    named = mentioned(categories, text)
    if question.kind == "chart value":
        return values[named[0]]
    if question.kind == "chart difference":
        return abs(values[named[0]] - values[named[1]])
    if question.kind == "chart extreme":
        return (max if "highest" in text else min)(values, key=values.__getitem__)
    limit = float(text.rstrip("?").rsplit(" ", 1)[1])
    return sum(value > limit for value in values.values())


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("kind", WITH_SERIES)
def test_answers_follow_from_the_transcript(kind: str, seeds: range) -> None:
    for seed in seeds:
        drawn = draw_chart(kind, seed, held_out=seed % 4 == 0)
        data = read_data(drawn)
        kinds = [question.kind for question in drawn.questions]
        assert kinds[0] == "transcript"
        assert set(kinds) == {"transcript"} | {kind for kind in METRIC_OF_KIND if kind.startswith("chart ")}
        assert len({question.text for question in drawn.questions}) == len(kinds)
        for question in drawn.questions[1:]:
            expected = worked_out(question, data)
            if isinstance(expected, str):
                assert question.answer == expected, question
            else:
                assert float(question.answer) == pytest.approx(expected, abs=1e-6), question


def test_answers_on_points_follow_from_the_transcript() -> None:
    for seed in range(6):
        drawn = draw_chart("scatter chart page", seed)
        points = {
            line.split(":")[0]: [(int(x), int(y)) for x, y in re.findall(r"\((\d+), (\d+)\)", line)]
            for line in drawn.transcript.split("\n")[2:]
        }
        everything: list[tuple[int, int, str]] = [
            (y, x, name) for name, group in points.items() for x, y in group
        ]
        answers = {question.text: question.answer for question in drawn.questions[1:]}
        for text, answer in answers.items():
            (name, *_) = [*mentioned(list(points), text), ""]
            expected = {
                "belong": len(points.get(name, ())),
                "in all": len(everything),
                "groups": len(points),
                "lies highest": max(everything)[2],
                "At which x": max(everything)[1],
                "largest y": max((y for _, y in points.get(name, ())), default=0),
                "exceed": max((x for x, _ in points.get(name, ())), default=0)
                - min((x for x, _ in points.get(name, ())), default=0),
            }
            (key,) = [key for key in expected if key in text]
            assert answer == str(expected[key]), (text, answer)
        assert len(answers) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_draw_equal_charts_and_others_do_not(kind: str) -> None:
    first, again = (draw_chart(kind, 3) for _ in range(2))
    assert numpy.array_equal(numpy.asarray(first.image), numpy.asarray(again.image))
    assert first.questions == again.questions
    others = (draw_chart(kind, 4), draw_chart(kind, 3, held_out=True))
    assert len({drawn.image.tobytes() for drawn in (first, *others)}) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_charts_have_the_size_of_pages_and_nothing_reaches_over_the_edge(
    kind: str, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    def watched(random: Random, theme: figure.Theme) -> Figure:
        figures.append(new_figure(random, theme))
        return figures[-1]

    monkeypatch.setattr(charts, "new_figure", watched)
    for seed in seeds:
        drawn = draw_chart(kind, seed, held_out=seed % 2 == 0)
        assert 690 <= max(drawn.image.size) <= 1610
        assert is_inside(figures[-1])


def test_letters_shrink_until_a_long_title_fits() -> None:
    theme = random_theme(Random(1), held_out=False)
    chart = new_figure(Random(1), theme)
    axes = chart.add_subplot()
    axes.set_title("A title that is far too long to fit over any chart of this width, however small " * 2)
    before: Any = axes.title.get_fontsize()
    figure.render(chart, theme)
    assert is_inside(chart)
    assert axes.title.get_fontsize() < before


def some_series(units_differ: bool = False) -> Series:
    random = Random(5)
    return draw_series(random, NameSource(random, held_out=False), 2, 5, units_differ)


def axes_and_theme() -> tuple[Any, figure.Theme]:
    theme = random_theme(Random(2), held_out=False)
    return new_figure(Random(2), theme).add_subplot(), theme


@pytest.mark.parametrize("lying", [False, True])
def test_bars_are_as_long_as_their_values(lying: bool) -> None:
    series, (axes, theme) = some_series(), axes_and_theme()
    draw_bars(axes, series, theme, lying)
    for index, container in enumerate(axes.containers):
        lengths = [bar.get_width() if lying else bar.get_height() for bar in container]
        assert lengths == series.plain(index)
        assert container.get_label() == series.names[index]


def test_lines_and_both_axes_go_through_their_values() -> None:
    series, (axes, theme) = some_series(), axes_and_theme()
    draw_lines(axes, series, theme, marked=True)
    assert [list(line.get_ydata()) for line in axes.lines] == [series.plain(0), series.plain(1)]
    series, (axes, theme) = some_series(units_differ=True), axes_and_theme()
    other = draw_dual(axes, series, theme)
    assert [bar.get_height() for bar in axes.containers[0]] == series.plain(0)
    assert list(other.lines[0].get_ydata()) == series.plain(1)
    assert series.units[0] != series.units[1]
    assert series.units[1] in other.get_ylabel()


def test_stacks_lie_upon_each_other() -> None:
    series, (axes, theme) = some_series(), axes_and_theme()
    draw_stacked(axes, series, theme, as_areas=False)
    low, high = axes.containers
    assert [bar.get_height() for bar in low] == series.plain(0)
    assert [bar.get_y() for bar in high] == series.plain(0)
    assert [bar.get_height() for bar in high] == series.plain(1)


def test_wedges_are_shares_and_every_value_is_printed() -> None:
    series = some_series()
    for labelled in (False, True):
        axes, theme = axes_and_theme()
        theme = figure.Theme(theme.family, theme.palette, theme.grid, theme.paper, theme.framed, labelled)
        draw_pie(axes, series, theme, is_ring=False, start=20)
        angles = [wedge.theta2 - wedge.theta1 for wedge in axes.patches]
        shares = [value / sum(series.values[0]) * 360 for value in series.values[0]]
        assert angles == pytest.approx(shares, abs=1e-3)
        printed = " ".join(text.get_text() for text in axes.figure.findobj(Text))
        assert all(series.show(value) in printed for value in series.values[0])


def test_points_stand_where_they_are_said_to() -> None:
    random = Random(8)
    points = draw_points(random, NameSource(random, held_out=False))
    axes, theme = axes_and_theme()
    draw_scatter(axes, points, theme)
    for collection, group in zip(axes.collections, points.points, strict=True):
        assert [tuple(map(int, place)) for place in collection.get_offsets()] == list(group)


def test_extremes_can_be_told_apart() -> None:
    for seed in range(60):
        random = Random(seed)
        series = draw_series(random, NameSource(random, held_out=False), 3, 9)
        for values in series.values:
            gaps = [high - low for low, high in pairwise(sorted(values))]
            assert min(gaps[0], gaps[-1]) >= max(1, max(values) // 20)


def test_held_out_charts_have_names_and_looks_of_their_own() -> None:
    looks: dict[bool, set[object]] = {False: set(), True: set()}
    for held_out in (False, True):
        for seed in range(40):
            random = Random(seed)
            theme = random_theme(random, held_out)
            looks[held_out] |= {theme.family, theme.palette, theme.grid}
            series = draw_series(random, NameSource(random, held_out), 2, 5)
            assert all(is_held_out(name) == held_out for name in series.names)
    assert not looks[False] & looks[True]
