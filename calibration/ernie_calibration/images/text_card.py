"""Draws cards with a few lines of unrelated words and numbers: nothing to look up, only to read."""

from __future__ import annotations

from random import Random

from ernie_calibration.canvas import count_lines, new_page, random_style
from ernie_calibration.drawn_image import DrawnImage, Question, Run, join
from ernie_calibration.names import NameSource, format_cents

READ_QUESTIONS = ("Read the text.", "What is written here?", "Read all lines.")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def random_snippet(random: Random, names: NameSource) -> str:
    """A word, a date, an amount, or random characters, so that every glyph occurs."""
    makers = (
        names.item,
        names.surname,
        names.company,
        names.date,
        names.document_number,
        lambda: format_cents(names.cents(), random.choice(("$", "£", "", "EUR", "USD"))),
        lambda: "".join(random.choice(LETTERS) for _ in range(random.randint(2, 7))),
        lambda: "".join(random.choice("0123456789.:-/,") for _ in range(random.randint(2, 7))),
    )
    return random.choice(makers)()


def draw_text_card(random: Random, names: NameSource, width: int, height: int, scale: float) -> DrawnImage:
    """As many lines as fit `height`, each as long as fits `width` page units."""
    page = new_page(random, width, height, scale)
    rows = count_lines(height)
    style = random_style(random, height)
    lines: list[Run] = []
    for row in range(rows):
        line = random_snippet(random, names)
        while True:
            longer = f"{line} {random_snippet(random, names)}"
            if (
                page.text_width(longer, style.font, style.size) > width - 2 * style.left
                or random.random() < 0.2
            ):
                break
            line = longer
        while page.text_width(line, style.font, style.size) > width - style.left and len(line) > 1:
            line = line[:-1].rstrip()
        x = random.uniform(2.0, max(2.0, width - page.text_width(line, style.font, style.size) - 2))
        lines.append(page.text(x, style.pitch * (row + 0.5), line, style.font, style.size, style.ink))
    questions = (Question("transcript", random.choice(READ_QUESTIONS), join(lines, "\n")),)
    return DrawnImage("text card", page.image, width, height, tuple(lines), questions)
