"""Draws small bar and line charts; the value of each bar or point is printed beside it."""

from __future__ import annotations

from itertools import pairwise
from math import floor
from random import Random

from ernie_calibration.drawn_image import (
    Canvas,
    Color,
    Question,
    Run,
    Style,
    count_lines,
    fit_size,
    join,
    random_style,
)
from ernie_calibration.names import SHORT_MONTHS, NameSource

TITLES = "Sales, Visitors, Output, Orders, Votes, Profit, Guests, Units sold, Members, Tickets".split(", ")
SUPERLATIVES = ("highest", "largest", "lowest", "smallest")
HIGHEST, LOWEST = SUPERLATIVES[:2], SUPERLATIVES[2:]
# Of these, either superlative of a pair.
EXTREME_BAR_QUESTIONS = (
    "Which bar is the {0}?",
    "Which bar is the {1}?",
    "Which has the {0} value?",
    "What is the {0} bar?",
)
EXTREME_POINT_QUESTIONS = (
    "When is the line the {0}?",
    "When is the value the {0}?",
    "Where is the {0} point?",
)
VALUE_QUESTIONS = (
    "What is the value of {}?",
    "How high is {}?",
    "What value has {}?",
    "Which value does {} have?",
)
POINT_QUESTIONS = (
    "What is the value in {}?",
    "What is the value for {}?",
    "How high is the line in {}?",
    "Which value is shown for {}?",
)
LARGEST_VALUE_LETTERS = 19  # page units
LabelledValue = tuple[Run, Run]  # the printed label of a bar or point, and its value


def random_values(random: Random, count: int) -> list[int]:
    """Different whole numbers; the highest and the lowest stand out by a sixth of the largest."""
    top = random.choice((20, 50, 100, 500, 900))
    while True:
        values = [random.randint(max(1, top // 12), top) for _ in range(count)]
        ordered = sorted(values)
        gaps = [high - low for low, high in pairwise(ordered)]
        if min(gaps) >= max(1, top // 20) and min(gaps[0], gaps[-1]) >= ordered[-1] / 6:
            return values


def random_bar_color(random: Random) -> Color:
    """A colour that is neither paper nor ink."""
    return (random.randint(60, 230), random.randint(60, 230), random.randint(60, 230))


def draw_bar_chart(random: Random, names: NameSource, page: Canvas) -> tuple[list[Run], list[Question]]:
    """3 to 5 bars, upright or lying."""
    lying = random.random() < 0.4
    room = count_lines(page.height) - 1 if lying else page.width // 70
    count = random.randint(3, max(3, min(5, room)))
    style = random_style(random, page)
    labels: list[str] = []
    while len(labels) < count:
        label = names.city() if random.random() < 0.3 else names.item()
        if label not in labels and len(label) <= 7:
            labels.append(label)
    values = random_values(random, count)
    one_color = random.random() < 0.5
    base = random_bar_color(random)
    colors = [base if one_color else random_bar_color(random) for _ in values]
    title = _draw_title(random, page, style)
    drawn = (_draw_lying if lying else _draw_upright)(page, style, labels, values, colors)
    chosen = random.sample(drawn, 2)
    highest, lowest = drawn[values.index(max(values))], drawn[values.index(min(values))]
    questions = [
        _ask_extreme("bar highest", random.choice(EXTREME_BAR_QUESTIONS).format(*HIGHEST), highest),
        _ask_extreme("bar lowest", random.choice(EXTREME_BAR_QUESTIONS).format(*LOWEST), lowest),
        *(_ask_value("bar value", random.choice(VALUE_QUESTIONS), bar) for bar in chosen),
    ]
    return [title, *(join(pair, " ") for pair in drawn)], questions


def _draw_title(random: Random, page: Canvas, style: Style) -> Run:
    x, y = page.width / 2, style.pitch / 2
    return page.text(x, y, random.choice(TITLES), style.bold, style.size, style.ink, "middle")


def _draw_upright(
    page: Canvas, style: Style, labels: list[str], values: list[int], colors: list[Color]
) -> list[LabelledValue]:
    drawn = []
    bottom = page.height - 1.05 * style.pitch
    slot = (page.width - 2 * style.left) / len(values)
    tops = _places(page, style, values, bottom)
    for (x, top), label, value, color in zip(tops, labels, values, colors, strict=True):
        page.rectangle((x - slot * 0.3, top, x + slot * 0.3, bottom), color)
        value_run = _draw_value(page, style, x, top, value)
        size = fit_size(page, label, style.font, style.size, slot - 5)
        y = page.height - style.pitch / 2
        drawn.append((page.text(x, y, label, style.font, size, style.ink, "middle"), value_run))
    page.line([(style.left, bottom), (page.width - style.left, bottom)], style.ink, 1.0)
    return drawn


def _draw_lying(
    page: Canvas, style: Style, labels: list[str], values: list[int], colors: list[Color]
) -> list[LabelledValue]:
    drawn = []
    pitch, value_size = style.pitch, min(style.size, LARGEST_VALUE_LETTERS)
    label_width = page.width * 0.30
    longest = page.width - label_width - style.left - 52
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = pitch + (index + 0.5) * pitch
        size = fit_size(page, label, style.font, style.size, label_width - style.left - 4)
        label_run = page.text(label_width - 4, y, label, style.font, size, style.ink, "right")
        end = label_width + longest * value / max(values)
        page.rectangle((label_width, y - pitch * 0.3, end, y + pitch * 0.3), colors[index])
        drawn.append((label_run, page.text(end + 5, y, str(value), style.font, value_size, style.ink)))
    page.line([(label_width, pitch), (label_width, pitch + len(values) * pitch)], style.ink, 1.0)
    return drawn


def _places(page: Canvas, style: Style, values: list[int], bottom: float) -> list[tuple[float, float]]:
    """The middle of each value's slot, and how high the value reaches over `bottom`."""
    top = style.pitch * 2.1
    slot = (page.width - 2 * style.left) / len(values)
    return [
        (style.left + (index + 0.5) * slot, bottom - (bottom - top) * value / max(values))
        for index, value in enumerate(values)
    ]


def _draw_value(page: Canvas, style: Style, x: float, y: float, value: int) -> Run:
    """Print a value in the middle of the text line above that of `y`."""
    above = max(1.5, floor(y / style.pitch) - 0.5) * style.pitch
    size = min(style.size, LARGEST_VALUE_LETTERS)
    return page.text(x, above, str(value), style.font, size, style.ink, "middle")


def _ask_value(kind: str, form: str, drawn: LabelledValue) -> Question:
    label, value = drawn
    return Question.about(kind, form.format(label.text), value, label)


def _ask_extreme(kind: str, text: str, drawn: LabelledValue) -> Question:
    """A question for the label of an extreme; its superlative names the value."""
    label, value = drawn
    superlative = next(word for word in SUPERLATIVES if word in text)
    return Question(kind, text, label, ((superlative, value),))


def draw_line_chart(
    random: Random,
    names: NameSource,  # noqa: ARG001  every maker has the same form
    page: Canvas,
) -> tuple[list[Run], list[Question]]:
    """A line of 4 to 6 points over months or years."""
    count = random.randint(4, max(4, min(6, page.width // 60)))
    style = random_style(random, page)
    if random.random() < 0.6:
        start = random.randrange(12 - count + 1)
        labels = list(SHORT_MONTHS[start : start + count])
    else:
        start = random.randint(1990, 2024)
        labels = [str(start + index) for index in range(count)]
    values = random_values(random, count)
    title = _draw_title(random, page, style)
    points = _places(page, style, values, page.height - style.pitch * 1.4)
    color = random_bar_color(random)
    page.line(points, color, random.uniform(1.5, 3.0))
    drawn: list[LabelledValue] = []
    label_size = min(style.size, (page.width - 2 * style.left) / count / 2.6)
    for (x, y), label, value in zip(points, labels, values, strict=True):
        page.dot(x, y, random.uniform(3.0, 4.5), color)
        value_run = _draw_value(page, style, x, y - 6, value)
        below = page.height - style.pitch / 2
        drawn.append((page.text(x, below, label, style.font, label_size, style.ink, "middle"), value_run))
    axis = page.height - style.pitch
    page.line([(style.left, axis), (page.width - style.left, axis)], style.ink, 1.0)
    chosen = random.sample(drawn, 3)
    highest, lowest = drawn[values.index(max(values))], drawn[values.index(min(values))]
    questions = [
        *(_ask_value("line point", random.choice(POINT_QUESTIONS), point) for point in chosen),
        _ask_extreme("line extreme", random.choice(EXTREME_POINT_QUESTIONS).format(*HIGHEST), highest),
        _ask_extreme("line extreme", random.choice(EXTREME_POINT_QUESTIONS).format(*LOWEST), lowest),
    ]
    return [title, *(join(pair, " ") for pair in drawn)], questions
