"""Draws small filled-in forms: labels with values, one to a line."""

from __future__ import annotations

from random import Random

from ernie_calibration.canvas import count_lines, fit_size, new_page, random_style
from ernie_calibration.drawn_image import DrawnImage, Question, Run, join, spelled_out
from ernie_calibration.names import NameSource

JOBS = "Baker Driver Nurse Teacher Farmer Engineer Cook Pilot Writer Painter Clerk Lawyer".split()
TITLES = ("Application", "Registration", "Form", "Membership", "Visitor", "Order form", "Patient", "Guest")
FIELD_QUESTIONS = ("What is the {}?", "Which {} is given?", "What {} is written?", "What is entered as {}?")


def _values(random: Random, names: NameSource) -> list[tuple[str, str]]:
    first, last = names.first_name(), names.surname()
    return [
        ("First name", first),
        ("Last name", last),
        ("City", names.city()),
        ("Date", names.date()),
        ("Phone", f"{random.randint(200, 999)}-{random.randint(1000, 9999)}"),
        ("Job", random.choice(JOBS)),
        ("Street", f"{names.surname()} Street {random.randint(1, 199)}"),
        ("Age", str(random.randint(18, 90))),
        ("Room", str(random.randint(1, 450))),
        ("Number", names.document_number()),
        (
            "Code",
            "".join(random.choice("ABCDEFGHKLMNPRSTUVWXYZ23456789") for _ in range(random.randint(4, 6))),
        ),
    ]


def draw_form(random: Random, names: NameSource, width: int, height: int, scale: float) -> DrawnImage:
    """A form of 3 to 8 fields on a page of `width` x `height` units."""
    page = new_page(random, width, height, scale)
    num_fields = random.randint(3, max(3, min(8, count_lines(height) - 1)))
    style = random_style(random, height)
    fields = random.sample(_values(random, names), num_fields)
    title, y = random.choice(TITLES), style.pitch / 2
    lines = [page.text(style.left, y, title, style.bold, style.size, style.ink)]
    drawn: list[tuple[Run, Run]] = []
    separator, underline = random.choice((":", "", ":")), random.random() < 0.4
    column = random.choice((0.0, 0.0, width * 0.42))
    for label, value in fields:
        y += style.pitch
        room = width - 2 * style.left
        size = fit_size(
            page, f"{label}{separator} {value}", style.font, style.size, room - (8 if column else 0)
        )
        label_run = page.text(style.left, y, label + separator, style.font, size, style.ink)
        after_label = style.left + page.text_width(label + separator + " ", style.font, size)
        x = max(column, after_label)
        size = fit_size(page, value, style.font, size, width - 4 - x)
        value_run = page.text(x, y, value, style.font, size, style.ink)
        if underline:
            page.line(
                [(x, y + style.pitch * 0.42), (width - style.left, y + style.pitch * 0.42)],
                (150, 150, 150),
                1.0,
            )
        lines.append(join((label_run, value_run), " "))
        drawn.append((label_run.part(label), value_run))
    asked = random.sample(drawn, min(4, num_fields))
    questions = tuple(
        Question(
            "form field", random.choice(FIELD_QUESTIONS).format(label.text.lower()), value, spelled_out(label)
        )
        for label, value in asked
    )
    return DrawnImage("form", page.image, width, height, tuple(lines), questions)
