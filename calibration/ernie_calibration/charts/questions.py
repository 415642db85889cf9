"""Asks about the figures of a chart, and computes the answers: values, extremes, differences, counts."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from ernie_calibration.charts.series import Series, transcript
from ernie_calibration.drawn_image import Question, Run

READ = (
    "Write down the data of the chart.",
    "Which values does the chart show?",
    "Turn the chart into a table or a list.",
    "What are the figures behind this chart?",
)
VALUE = (
    "What is the value of {name} for {category}?",
    "How large is {name} at {category}?",
    "Which value does {name} have for {category}?",
)
HIGHEST = ("For which {axis} is {name} highest?", "Which {axis} has the highest value of {name}?")
LOWEST = ("For which {axis} is {name} lowest?", "Which {axis} has the lowest value of {name}?")
DIFFERENCE = (
    "By how much does {name} differ between {category} and {other}?",
    "What is the difference of {name} between {category} and {other}?",
)
ABOVE = "How many values of {name} are above {limit}?"
SERIES_COUNT = ("How many data series does the chart show?", "How many series are there?")
CATEGORY_COUNT = ("How many values does each series have?", "How many categories are shown?")


def question(kind: str, text: str, answer: str) -> Question:
    """A question whose answer is not printed in the form that is asked for."""
    return Question(kind, text, Run.unprinted(answer))


def ask_series(random: Random, series: Series) -> list[Question]:
    """Ask for all figures, then for values, extremes, a difference and two counts."""
    return [
        question("transcript", random.choice(READ), transcript(random, series)),
        *_values(random, series),
        _extreme(random, series, HIGHEST),
        _extreme(random, series, LOWEST),
        _difference(random, series),
        _above(random, series),
        _count(random, series),
    ]


def _values(random: Random, series: Series) -> list[Question]:
    """Two different ones."""
    cells = [(place, index) for place in range(len(series.names)) for index in range(len(series.categories))]
    return [
        question(
            "chart value",
            random.choice(VALUE).format(name=series.names[place], category=series.categories[index]),
            series.show(series.values[place][index]),
        )
        for place, index in random.sample(cells, 2)
    ]


def _extreme(random: Random, series: Series, forms: tuple[str, ...]) -> Question:
    place = random.randrange(len(series.names))
    values = series.values[place]
    wanted = max(values) if forms is HIGHEST else min(values)
    text = random.choice(forms).format(axis=series.axis, name=series.names[place])
    return question("chart extreme", text, series.categories[values.index(wanted)])


def _difference(random: Random, series: Series) -> Question:
    """Between the two ends of a series: small differences of large values cannot be read off within 5 %."""
    place = random.randrange(len(series.names))
    values = series.values[place]
    ends = [series.categories[values.index(value)] for value in (max(values), min(values))]
    random.shuffle(ends)
    text = random.choice(DIFFERENCE).format(name=series.names[place], category=ends[0], other=ends[1])
    return question("chart difference", text, series.show(max(values) - min(values)))


def _above(random: Random, series: Series) -> Question:
    """The limit lies in the middle of the widest gap between two values."""
    place = random.randrange(len(series.names))
    ordered = sorted(series.values[place])
    low, high = max(pairwise(ordered), key=lambda pair: pair[1] - pair[0])
    limit = (low + high) // 2
    number = sum(value > limit for value in ordered)
    text = ABOVE.format(name=series.names[place], limit=series.show(limit))
    return question("chart count", text, str(number))


def _count(random: Random, series: Series) -> Question:
    if random.random() < 0.5:
        return question("chart count", random.choice(SERIES_COUNT), str(len(series.names)))
    return question("chart count", random.choice(CATEGORY_COUNT), str(len(series.categories)))
