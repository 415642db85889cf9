"""Draws small forms, tables, and cards of words and numbers that are there only to be read."""

from __future__ import annotations

from random import Random

from ernie_calibration.drawn_image import Canvas, Question, Run, count_lines, fit_size, join, random_style
from ernie_calibration.names import NameSource, different, format_cents

JOBS = "Baker Driver Nurse Teacher Farmer Engineer Cook Pilot Writer Painter Clerk Lawyer".split()
TITLES = ("Application", "Registration", "Form", "Membership", "Visitor", "Order form", "Patient", "Guest")
FIELD_QUESTIONS = ("What is the {}?", "Which {} is given?", "What {} is written?", "What is entered as {}?")
COLUMNS = "Price Stock Sold Size Year Weight Rank Cost Units Score Age Points Code".split()
CELL_QUESTIONS = (
    "What is the {column} of {row}?",
    "What {column} has {row}?",
    "Which {column} is listed for {row}?",
    "What is the {column} for {row}?",
)
READ_QUESTIONS = ("Read the text.", "What is written here?", "Read all lines.")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def draw_form(random: Random, names: NameSource, page: Canvas) -> tuple[list[Run], list[Question]]:
    """A title, and 3 to 8 labels with values, one to a line."""
    num_fields = random.randint(3, max(3, min(8, count_lines(page.height) - 1)))
    style = random_style(random, page)
    fields = random.sample(_form_values(random, names), num_fields)
    title, y, right = random.choice(TITLES), style.pitch / 2, page.width - style.left
    lines = [page.text(style.left, y, title, style.bold, style.size, style.ink)]
    drawn: list[tuple[Run, Run]] = []
    separator, underline = random.choice((":", "", ":")), random.random() < 0.4
    column = random.choice((0.0, 0.0, page.width * 0.42))
    room = page.width - 2 * style.left - (8 if column else 0)
    for label, value in fields:
        y += style.pitch
        size = fit_size(page, f"{label}{separator} {value}", style.font, style.size, room)
        label_run = page.text(style.left, y, label + separator, style.font, size, style.ink)
        after_label = style.left + page.text_width(label + separator + " ", style.font, size)
        x = max(column, after_label)
        size = fit_size(page, value, style.font, size, page.width - 4 - x)
        value_run = page.text(x, y, value, style.font, size, style.ink)
        if underline:
            below = y + style.pitch * 0.42
            page.line([(x, below), (right, below)], (150, 150, 150), 1.0)
        lines.append(join((label_run, value_run), " "))
        drawn.append((label_run.part(label), value_run))
    questions = []
    for label_run, value_run in random.sample(drawn, min(4, num_fields)):
        text = random.choice(FIELD_QUESTIONS).format(label_run.text.lower())
        questions.append(Question.about("form field", text, value_run, label_run))
    return lines, questions


def _form_values(random: Random, names: NameSource) -> list[tuple[str, str]]:
    letters = "ABCDEFGHKLMNPRSTUVWXYZ23456789"
    return [
        ("First name", names.first_name()),
        ("Last name", names.surname()),
        ("City", names.city()),
        ("Date", names.date()),
        ("Phone", f"{random.randint(200, 999)}-{random.randint(1000, 9999)}"),
        ("Job", random.choice(JOBS)),
        ("Street", f"{names.surname()} Street {random.randint(1, 199)}"),
        ("Age", str(random.randint(18, 90))),
        ("Room", str(random.randint(1, 450))),
        ("Number", names.document_number()),
        ("Code", "".join(random.choice(letters) for _ in range(random.randint(4, 6)))),
    ]


def draw_table(random: Random, names: NameSource, page: Canvas) -> tuple[list[Run], list[Question]]:
    """2 to 3 named columns and up to 7 named rows, one number in each cell."""
    num_columns = random.randint(2, 3) if page.width >= 340 else 2
    num_rows = random.randint(3, max(3, min(7, count_lines(page.height) - 1)))
    style = random_style(random, page)
    columns = random.sample(COLUMNS, num_columns)
    people = random.random() < 0.4
    rows = different(num_rows, names.first_name if people else names.item)
    texts = [[row, *(_cell(random, column) for column in columns)] for row in rows]
    texts.insert(0, [random.choice(("Name", "Person" if people else "Item", "")), *columns])
    first_width = page.width * (0.40 if num_columns == 2 else 0.34)
    column_width = (page.width - 2 * style.left - first_width) / num_columns
    align, ruled = random.choice(("left", "right")), random.random() < 0.6
    grid: list[list[Run]] = []
    for row_index, cells in enumerate(texts):
        y = style.pitch * (row_index + 0.5)
        font = style.bold if row_index == 0 else style.font
        size = fit_size(page, cells[0], font, style.size, first_width - 8)
        grid.append([page.text(style.left, y, cells[0], font, size, style.ink)])
        for index, text in enumerate(cells[1:]):
            size = fit_size(page, text, font, style.size, column_width - 8)
            start = style.left + (first_width + index * column_width)
            x = start + column_width - 4 if align == "right" else start + 4
            grid[-1].append(page.text(x, y, text, font, size, style.ink, align))
        if ruled or row_index == 0:
            rule_y = style.pitch * (row_index + 1) - 1
            page.line([(style.left, rule_y), (page.width - style.left, rule_y)], (140, 140, 140), 1.0)
    questions = []
    for row, column in random.sample([(r, c) for r in range(num_rows) for c in range(num_columns)], 4):
        form = random.choice(CELL_QUESTIONS)
        text = form.format(column=columns[column].lower(), row=rows[row])
        header, first, cell = grid[0][column + 1], grid[row + 1][0], grid[row + 1][column + 1]
        questions.append(Question.about("table cell", text, cell, header, first))
    return [join([run for run in row if run.text], " ") for row in grid], questions


def _cell(random: Random, column: str) -> str:
    if column == "Year":
        return str(random.randint(1950, 2029))
    if column in ("Price", "Cost"):
        return f"{random.randint(1, 99)}.{random.randint(0, 99):02d}"
    return str(random.randint(1, random.choice((99, 999))))


def draw_text_card(random: Random, names: NameSource, page: Canvas) -> tuple[list[Run], list[Question]]:
    """As many lines as fit the page; each as long as fits."""
    style = random_style(random, page)
    room = page.width - 2 * style.left
    lines: list[Run] = []
    for row in range(count_lines(page.height)):
        line = _snippet(random, names)
        while True:
            longer = f"{line} {_snippet(random, names)}"
            if page.text_width(longer, style.font, style.size) > room or random.random() < 0.2:
                break
            line = longer
        while page.text_width(line, style.font, style.size) > page.width - style.left and len(line) > 1:
            line = line[:-1].rstrip()
        x = random.uniform(2.0, max(2.0, page.width - page.text_width(line, style.font, style.size) - 2))
        lines.append(page.text(x, style.pitch * (row + 0.5), line, style.font, style.size, style.ink))
    return lines, [Question("transcript", random.choice(READ_QUESTIONS), join(lines, "\n"))]


def _snippet(random: Random, names: NameSource) -> str:
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
