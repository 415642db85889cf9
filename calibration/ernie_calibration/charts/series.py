"""Draws the figures of a chart: categories, series, values, their written form and their transcript."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ernie_calibration.names import MONTHS, SHORT_MONTHS, NameSource, of_world

SUBJECTS = (
    "Sales, Visitors, Output, Orders, Exports, Profit, Guests, Members, Energy use, Costs, Deliveries, "
    "Complaints"
).split(", ")
UNITS = ("units", "thousand EUR", "tonnes", "percent", "million USD", "hours", "pieces", "MWh")
PLACES = ("in {}", "of {}", "at {}", "near {}")
# Values are at most one of these. Up to the second entry they may have a decimal.
LARGEST = (20, 60, 100, 400, 1500, 9000)
SMALLEST_SHARE = 0.08  # of the largest value: smaller ones cannot be read off an axis within 5 %


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
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(draw())
    return kind, tuple(found)


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
    if random.random() < 0.6:
        lines = [series.title, " | ".join((series.axis.capitalize(), *named))]
        for index, category in enumerate(series.categories):
            lines.append(" | ".join((category, *(series.show(values[index]) for values in series.values))))
        return "\n".join(lines)
    lines = [f"{series.title}, by {series.axis}."]
    for name, values in zip(named, series.values, strict=True):
        shown = (f"{c} {series.show(v)}" for c, v in zip(series.categories, values, strict=True))
        lines.append(f"{name}: {', '.join(shown)}.")
    return "\n".join(lines)
