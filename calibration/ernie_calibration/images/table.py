"""Draws small tables: named rows, named columns, one number or word in each cell."""

from __future__ import annotations

from random import Random

from ernie_calibration.canvas import count_lines, fit_size, new_page, random_style
from ernie_calibration.drawn_image import DrawnImage, Question, Run, join, spelled_out
from ernie_calibration.names import NameSource

COLUMNS = "Price Stock Sold Size Year Weight Rank Cost Units Score Age Points Code".split()
CELL_QUESTIONS = (
    "What is the {column} of {row}?",
    "What {column} has {row}?",
    "Which {column} is listed for {row}?",
    "What is the {column} for {row}?",
)


def _cell(random: Random, column: str) -> str:
    if column == "Year":
        return str(random.randint(1950, 2029))
    if column in ("Price", "Cost"):
        return f"{random.randint(1, 99)}.{random.randint(0, 99):02d}"
    return str(random.randint(1, random.choice((99, 999))))


def draw_table(random: Random, names: NameSource, width: int, height: int, scale: float) -> DrawnImage:
    """A table of 2 to 3 value columns and up to 7 rows on a page of `width` x `height` units."""
    page = new_page(random, width, height, scale)
    num_columns = random.randint(2, 3) if width >= 340 else 2
    num_rows = random.randint(3, max(3, min(7, count_lines(height) - 1)))
    style = random_style(random, height)
    columns = random.sample(COLUMNS, num_columns)
    people = random.random() < 0.4
    rows: list[str] = []
    while len(rows) < num_rows:
        name = names.first_name() if people else names.item()
        if name not in rows:
            rows.append(name)
    cells = [[_cell(random, column) for column in columns] for _ in rows]
    first_header = (
        random.choice(("Name", "Item", "")) if not people else random.choice(("Name", "Person", ""))
    )
    first_width = width * (0.40 if num_columns == 2 else 0.34)
    column_width = (width - 2 * style.left - first_width) / num_columns
    align, ruled = random.choice(("left", "right")), random.random() < 0.6
    grid: list[list[Run]] = []
    for row_index, texts in enumerate(
        [[first_header, *columns], *([n, *c] for n, c in zip(rows, cells, strict=True))]
    ):
        y = style.pitch * (row_index + 0.5)
        font = style.bold if row_index == 0 else style.font
        grid.append([])
        for column_index, text in enumerate(texts):
            room = (first_width if column_index == 0 else column_width) - 8
            size = fit_size(page, text, font, style.size, room)
            start = style.left + (0 if column_index == 0 else first_width + (column_index - 1) * column_width)
            if column_index and align == "right":
                run = page.text(start + column_width - 4, y, text, font, size, style.ink, "right")
            else:
                run = page.text(start + (4 if column_index else 0), y, text, font, size, style.ink)
            grid[-1].append(run)
        if ruled or row_index == 0:
            rule_y = style.pitch * (row_index + 1) - 1
            page.line([(style.left, rule_y), (width - style.left, rule_y)], (140, 140, 140), 1.0)
    wanted = random.sample([(r, c) for r in range(num_rows) for c in range(num_columns)], 4)
    questions = tuple(
        Question(
            "table cell",
            random.choice(CELL_QUESTIONS).format(column=columns[c].lower(), row=rows[r]),
            grid[r + 1][c + 1],
            spelled_out(grid[0][c + 1], grid[r + 1][0]),
        )
        for r, c in wanted
    )
    lines = tuple(join([run for run in row if run.text], " ") for row in grid)
    return DrawnImage("table", page.image, width, height, lines, questions)
