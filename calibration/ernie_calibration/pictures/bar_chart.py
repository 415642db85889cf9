"""Bar charts, upright or lying, each bar named and its value printed at its end."""

from __future__ import annotations

from itertools import pairwise
from math import floor
from random import Random

from ernie_calibration.pictures.names import NameSource
from ernie_calibration.pictures.page import Color, Page
from ernie_calibration.pictures.picture import Picture, Question
from ernie_calibration.pictures.style import Style, count_lines, fit_size, new_page, random_style

TITLES = (
    "Sales",
    "Visitors",
    "Output",
    "Orders",
    "Votes",
    "Profit",
    "Guests",
    "Units sold",
    "Members",
    "Tickets",
)
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
VALUE_QUESTIONS = (
    "What is the value of {}?",
    "How high is {}?",
    "What value has {}?",
    "Which value does {} have?",
)


def random_values(random: Random, count: int) -> list[int]:
    """Different whole numbers, far enough apart to be seen: at least a twentieth of the largest."""
    top = random.choice((20, 50, 100, 500, 900))
    while True:
        values = [random.randint(max(1, top // 12), top) for _ in range(count)]
        ordered = sorted(values)
        if all(high - low >= max(1, top // 20) for low, high in pairwise(ordered)):
            return values


def random_bar_color(random: Random) -> Color:
    """A colour that is neither paper nor ink."""
    return (random.randint(60, 230), random.randint(60, 230), random.randint(60, 230))


def label_line(style: Style, y: float) -> float:
    """Where the value of a point at `y` is printed: the middle of the text line above that of `y`."""
    return max(1.5, floor(y / style.pitch) - 0.5) * style.pitch


def _draw_upright(
    page: Page, style: Style, labels: list[str], values: list[int], colors: list[Color]
) -> None:
    top = 2.1 * style.pitch
    bottom = page.height - 1.05 * style.pitch
    slot = (page.width - 2 * style.left) / len(values)
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = style.left + (index + 0.5) * slot
        bar_top = bottom - (bottom - top) * value / max(values)
        page.rectangle((middle - slot * 0.3, bar_top, middle + slot * 0.3, bottom), colors[index])
        page.text(
            middle,
            label_line(style, bar_top),
            str(value),
            style.font,
            min(style.size, 19),
            style.ink,
            "middle",
        )
        size = fit_size(page, label, style.font, style.size, slot - 5)
        page.text(middle, page.height - style.pitch / 2, label, style.font, size, style.ink, "middle")
    page.line([(style.left, bottom), (page.width - style.left, bottom)], style.ink, 1.0)


def _draw_lying(page: Page, style: Style, labels: list[str], values: list[int], colors: list[Color]) -> None:
    top, pitch = style.pitch, style.pitch
    label_width = page.width * 0.30
    longest = page.width - label_width - style.left - 52
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = top + (index + 0.5) * pitch
        size = fit_size(page, label, style.font, style.size, label_width - style.left - 4)
        page.text(label_width - 4, y, label, style.font, size, style.ink, "right")
        end = label_width + longest * value / max(values)
        page.rectangle((label_width, y - pitch * 0.3, end, y + pitch * 0.3), colors[index])
        page.text(end + 5, y, str(value), style.font, min(style.size, 19), style.ink)
    page.line([(label_width, top), (label_width, top + len(values) * pitch)], style.ink, 1.0)


def make_bar_chart(random: Random, names: NameSource, width: int, height: int, scale: float) -> Picture:
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
    page.text(width / 2, style.pitch / 2, title, style.bold, style.size, style.ink, "middle")
    (_draw_lying if lying else _draw_upright)(page, style, labels, values, colors)
    chosen = random.sample(range(count), 2)
    questions = (
        Question("bar highest", random.choice(HIGHEST_QUESTIONS), labels[values.index(max(values))]),
        Question("bar lowest", random.choice(LOWEST_QUESTIONS), labels[values.index(min(values))]),
        *(
            Question("bar value", random.choice(VALUE_QUESTIONS).format(labels[index]), str(values[index]))
            for index in chosen
        ),
    )
    lines = (title, *(f"{label} {value}" for label, value in zip(labels, values, strict=True)))
    return Picture("bar chart", page.image, width, height, lines, page.glyphs, questions)
