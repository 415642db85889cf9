"""Draws the figures of a chart, writes their transcript, and asks about them with the answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from ernie_calibration.drawn_image import Question, Run
from ernie_calibration.names import MONTHS, SHORT_MONTHS, NameSource, different, of_world

SUBJECTS = (
    "Sales, Visitors, Output, Orders, Exports, Profit, Guests, Members, Energy use, Costs, Deliveries, "
    "Complaints"
).split(", ")
UNITS = ("units", "thousand EUR", "tonnes", "percent", "million USD", "hours", "pieces", "MWh")
PLACES = ("in {}", "of {}", "at {}", "near {}")
# Values are at most one of these. Up to the second entry they may have a decimal.
LARGEST = (20, 60, 100, 400, 1500, 9000)
SMALLEST_SHARE = 0.08  # of the largest value: smaller ones cannot be read off an axis within 5 %
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


@dataclass(frozen=True, slots=True)
class Series:
    """values[s][c]: of series s in category c, whole numbers of the last decimal place that is written.

    axis: what a category is. units: of each series.
    """

    title: str
    axis: str
    categories: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    decimals: int

    def show(self, value: int) -> str:
        """A value as it is written."""
        return f"{value / 10**self.decimals:.{self.decimals}f}"

    def shown(self, series: int) -> list[str]:
        """All values of one series as they are written."""
        return [self.show(value) for value in self.values[series]]

    def plain(self, series: int) -> list[float]:
        """All values of one series as numbers to draw."""
        return [value / 10**self.decimals for value in self.values[series]]


def draw_series(
    random: Random, names: NameSource, num_series: int, num_categories: int, units_differ: bool = False
) -> Series:
    """Figures by `random`. With `units_differ` each series has a unit and a size of its own."""
    axis, categories = _categories(random, names, num_categories)
    units = random.sample(of_world(UNITS, names.held_out), 2)
    tops = [random.choice(LARGEST) for _ in range(num_series)]
    if not units_differ:
        units, tops = [units[0]] * num_series, tops[:1] * num_series
    decimals = 1 if max(tops) <= LARGEST[1] and random.random() < 0.5 else 0
    labels: list[str] = []
    while len(labels) < num_series:
        label = names.item() if random.random() < 0.5 else names.surname()
        if label not in labels and label not in categories:
            labels.append(label)
    subject = random.choice(of_world(SUBJECTS, names.held_out))
    place = random.choice(of_world(PLACES, names.held_out)).format(names.city())
    values = tuple(draw_values(random, top * 10**decimals, num_categories) for top in tops)
    return Series(f"{subject} {place}", axis, categories, tuple(labels), tuple(units), values, decimals)


def _categories(random: Random, names: NameSource, count: int) -> tuple[str, tuple[str, ...]]:
    kind = random.choice(("month", "year", "city", "product", "person"))
    if kind == "month":
        months = random.choice((MONTHS, SHORT_MONTHS)) if count <= 6 else SHORT_MONTHS
        start = random.randrange(12)
        return kind, tuple(months[(start + index) % 12] for index in range(count))
    if kind == "year":
        first = random.randint(1960, 2030 - count)
        return kind, tuple(str(first + index) for index in range(count))
    draw = {"city": names.city, "product": names.item, "person": names.surname}[kind]
    return kind, tuple(different(count, draw))


def draw_values(random: Random, largest: int, count: int) -> tuple[int, ...]:
    """At least three values; the first and the second at either end are a twentieth of the highest apart."""
    while True:
        values = [random.randint(max(1, round(largest * SMALLEST_SHARE)), largest) for _ in range(count)]
        ordered = sorted(values)
        gap = max(1, ordered[-1] // 20)
        if min(ordered[1] - ordered[0], ordered[-1] - ordered[-2]) >= gap:
            return tuple(values)


def transcript(random: Random, series: Series) -> str:
    """Title and all figures with their units: as a table, or in words."""
    named = [f"{name} ({unit})" for name, unit in zip(series.names, series.units, strict=True)]
    shown = [series.shown(index) for index in range(len(named))]
    if random.random() < 0.6:
        rows = [(series.axis.capitalize(), *named), *zip(series.categories, *shown, strict=True)]
        return "\n".join([series.title, *(" | ".join(row) for row in rows)])
    lines = [f"{series.title}, by {series.axis}."]
    for name, values in zip(named, shown, strict=True):
        pairs = (" ".join(pair) for pair in zip(series.categories, values, strict=True))
        lines.append(f"{name}: {', '.join(pairs)}.")
    return "\n".join(lines)


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
    questions = []
    for place, index in random.sample(cells, 2):
        name, category = series.names[place], series.categories[index]
        text = random.choice(VALUE).format(name=name, category=category)
        questions.append(question("chart value", text, series.shown(place)[index]))
    return questions


def _one(random: Random, series: Series) -> tuple[str, tuple[int, ...]]:
    """The name and the values of one series."""
    return random.choice(list(zip(series.names, series.values, strict=True)))


def _extreme(random: Random, series: Series, forms: tuple[str, ...]) -> Question:
    name, values = _one(random, series)
    wanted = max(values) if forms is HIGHEST else min(values)
    text = random.choice(forms).format(axis=series.axis, name=name)
    return question("chart extreme", text, series.categories[values.index(wanted)])


def _difference(random: Random, series: Series) -> Question:
    """Between the two ends of a series: small differences of large values cannot be read off within 5 %."""
    name, values = _one(random, series)
    ends = [series.categories[values.index(value)] for value in (max(values), min(values))]
    random.shuffle(ends)
    text = random.choice(DIFFERENCE).format(name=name, category=ends[0], other=ends[1])
    return question("chart difference", text, series.show(max(values) - min(values)))


def _above(random: Random, series: Series) -> Question:
    """The limit lies in the middle of the widest gap between two values."""
    name, values = _one(random, series)
    low, high = max(pairwise(sorted(values)), key=lambda pair: pair[1] - pair[0])
    limit = (low + high) // 2
    text = ABOVE.format(name=name, limit=series.show(limit))
    return question("chart count", text, str(sum(value > limit for value in values)))


def _count(random: Random, series: Series) -> Question:
    if random.random() < 0.5:
        return question("chart count", random.choice(SERIES_COUNT), str(len(series.names)))
    return question("chart count", random.choice(CATEGORY_COUNT), str(len(series.categories)))
