"""Draws small bar and line charts; the value of each bar or point is printed beside it."""

from __future__ import annotations

from itertools import pairwise
from math import floor
from random import Random

from ernie_calibration.canvas import Canvas, Color, Style, count_lines, fit_size, new_page, random_style
from ernie_calibration.drawn_image import DrawnImage, Question, Run, join, spelled_out
from ernie_calibration.names import SHORT_MONTHS, NameSource

TITLES = "Sales, Visitors, Output, Orders, Votes, Profit, Guests, Units sold, Members, Tickets".split(", ")
HIGHEST_QUESTIONS = (
    "Which bar is the highest?",
    "Which bar is the largest?",
    "Which has the highest value?",
    "What is the highest bar?",
)
LOWEST_QUESTIONS = (
    "Which bar is the lowest?",
    "Which bar is the smallest?",
    "Which has the lowest value?",
    "What is the lowest bar?",
)
SUPERLATIVES = ("highest", "largest", "lowest", "smallest")
VALUE_QUESTIONS = (
    "What is the value of {}?",
    "How high is {}?",
    "What value has {}?",
    "Which value does {} have?",
)


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


def label_line(style: Style, y: float) -> float:
    """Where the value of a point at `y` is printed: the middle of the text line above that of `y`."""
    return max(1.5, floor(y / style.pitch) - 0.5) * style.pitch


def _draw_upright(
    page: Canvas, style: Style, labels: list[str], values: list[int], colors: list[Color]
) -> list[tuple[Run, Run]]:
    """Draw; the label and the value of each bar."""
    drawn = []
    top = 2.1 * style.pitch
    bottom = page.height - 1.05 * style.pitch
    slot = (page.width - 2 * style.left) / len(values)
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = style.left + (index + 0.5) * slot
        bar_top = bottom - (bottom - top) * value / max(values)
        page.rectangle((middle - slot * 0.3, bar_top, middle + slot * 0.3, bottom), colors[index])
        value_size = min(style.size, 19)
        y = label_line(style, bar_top)
        value_run = page.text(middle, y, str(value), style.font, value_size, style.ink, "middle")
        size = fit_size(page, label, style.font, style.size, slot - 5)
        y = page.height - style.pitch / 2
        drawn.append((page.text(middle, y, label, style.font, size, style.ink, "middle"), value_run))
    page.line([(style.left, bottom), (page.width - style.left, bottom)], style.ink, 1.0)
    return drawn


def _draw_lying(
    page: Canvas, style: Style, labels: list[str], values: list[int], colors: list[Color]
) -> list[tuple[Run, Run]]:
    """Draw; the label and the value of each bar."""
    drawn = []
    top, pitch = style.pitch, style.pitch
    label_width = page.width * 0.30
    longest = page.width - label_width - style.left - 52
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = top + (index + 0.5) * pitch
        size = fit_size(page, label, style.font, style.size, label_width - style.left - 4)
        label_run = page.text(label_width - 4, y, label, style.font, size, style.ink, "right")
        end = label_width + longest * value / max(values)
        page.rectangle((label_width, y - pitch * 0.3, end, y + pitch * 0.3), colors[index])
        value_run = page.text(end + 5, y, str(value), style.font, min(style.size, 19), style.ink)
        drawn.append((label_run, value_run))
    page.line([(label_width, top), (label_width, top + len(values) * pitch)], style.ink, 1.0)
    return drawn


def extreme_question(kind: str, text: str, drawn: tuple[Run, Run]) -> Question:
    """A question for the label of an extreme; its superlative names the value. drawn: label and value."""
    label, value = drawn
    superlative = next(word for word in SUPERLATIVES if word in text)
    return Question(kind, text, label, ((superlative, value),))


def draw_bar_chart(random: Random, names: NameSource, width: int, height: int, scale: float) -> DrawnImage:
    """A chart of 3 to 5 bars on a page of `width` x `height` units."""
    page = new_page(random, width, height, scale)
    lying = random.random() < 0.4
    count = random.randint(3, max(3, min(5, count_lines(height) - 1 if lying else width // 70)))
    style = random_style(random, height)
    labels: list[str] = []
    while len(labels) < count:
        label = names.city() if random.random() < 0.3 else names.item()
        if label not in labels and len(label) <= 7:
            labels.append(label)
    values = random_values(random, count)
    one_color = random.random() < 0.5
    base = random_bar_color(random)
    colors = [base if one_color else random_bar_color(random) for _ in values]
    title = random.choice(TITLES)
    title_run = page.text(width / 2, style.pitch / 2, title, style.bold, style.size, style.ink, "middle")
    drawn = (_draw_lying if lying else _draw_upright)(page, style, labels, values, colors)
    chosen = random.sample(range(count), 2)
    questions = (
        extreme_question("bar highest", random.choice(HIGHEST_QUESTIONS), drawn[values.index(max(values))]),
        extreme_question("bar lowest", random.choice(LOWEST_QUESTIONS), drawn[values.index(min(values))]),
        *(
            Question(
                "bar value",
                random.choice(VALUE_QUESTIONS).format(labels[index]),
                drawn[index][1],
                spelled_out(drawn[index][0]),
            )
            for index in chosen
        ),
    )
    lines = (title_run, *(join(pair, " ") for pair in drawn))
    return DrawnImage("bar chart", page.image, width, height, lines, questions)


POINT_QUESTIONS = (
    "What is the value in {}?",
    "What is the value for {}?",
    "How high is the line in {}?",
    "Which value is shown for {}?",
)
PEAK_QUESTIONS = (
    "When is the line the highest?",
    "When is the value the highest?",
    "Where is the highest point?",
)
LOW_QUESTIONS = (
    "When is the line the lowest?",
    "When is the value the lowest?",
    "Where is the lowest point?",
)


def draw_line_chart(
    random: Random,
    names: NameSource,  # noqa: ARG001  every maker has the same form
    width: int,
    height: int,
    scale: float,
) -> DrawnImage:
    """A line of 4 to 6 points on a page of `width` x `height` units, over months or years."""
    page = new_page(random, width, height, scale)
    count = random.randint(4, max(4, min(6, width // 60)))
    style = random_style(random, height)
    if random.random() < 0.6:
        start = random.randrange(12 - count + 1)
        labels = list(SHORT_MONTHS[start : start + count])
    else:
        start = random.randint(1990, 2024)
        labels = [str(start + index) for index in range(count)]
    values = random_values(random, count)
    title = random.choice(TITLES)
    title_run = page.text(width / 2, style.pitch / 2, title, style.bold, style.size, style.ink, "middle")
    top, bottom = style.pitch * 2.1, height - style.pitch * 1.4
    slot = (width - 2 * style.left) / count
    points = [
        (style.left + (index + 0.5) * slot, bottom - (bottom - top) * value / max(values))
        for index, value in enumerate(values)
    ]
    color = random_bar_color(random)
    page.line(points, color, random.uniform(1.5, 3.0))
    drawn: list[tuple[Run, Run]] = []
    for (x, y), label, value in zip(points, labels, values, strict=True):
        page.dot(x, y, random.uniform(3.0, 4.5), color)
        above, below = label_line(style, y - 6), height - style.pitch / 2
        value_run = page.text(x, above, str(value), style.font, min(style.size, 19), style.ink, "middle")
        label_run = page.text(x, below, label, style.font, min(style.size, slot / 2.6), style.ink, "middle")
        drawn.append((label_run, value_run))
    page.line(
        [(style.left, height - style.pitch), (width - style.left, height - style.pitch)], style.ink, 1.0
    )
    chosen = random.sample(range(count), 3)
    questions = (
        *(
            Question(
                "line point",
                random.choice(POINT_QUESTIONS).format(labels[index]),
                drawn[index][1],
                spelled_out(drawn[index][0]),
            )
            for index in chosen
        ),
        extreme_question("line extreme", random.choice(PEAK_QUESTIONS), drawn[values.index(max(values))]),
        extreme_question("line extreme", random.choice(LOW_QUESTIONS), drawn[values.index(min(values))]),
    )
    lines = (title_run, *(join(pair, " ") for pair in drawn))
    return DrawnImage("line chart", page.image, width, height, lines, questions)
