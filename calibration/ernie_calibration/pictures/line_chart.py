"""Line charts over months or years, each point marked and its value printed above it."""

from __future__ import annotations

from random import Random

from ernie_calibration.pictures.bar_chart import (
    TITLES,
    extreme_question,
    label_line,
    random_bar_color,
    random_values,
)
from ernie_calibration.pictures.names import SHORT_MONTHS, NameSource
from ernie_calibration.pictures.picture import Picture, Question, Run, join, spelled_out
from ernie_calibration.pictures.style import new_page, random_style

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


def make_line_chart(
    random: Random,
    names: NameSource,  # noqa: ARG001  every maker has the same form
    width: int,
    height: int,
    scale: float,
) -> Picture:
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
    return Picture("line chart", page.image, width, height, lines, questions)
