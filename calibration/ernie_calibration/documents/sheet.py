"""Writes a page from top to bottom: lines of cells, paragraphs, fields and tables, and their transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor
from random import Random
from typing import Literal

from ernie_calibration.documents.language import Typeface
from ernie_calibration.drawn_image import (
    SHARE_BEFORE,
    Canvas,
    Color,
    Run,
    join,
    random_background,
    random_ink,
)

Align = Literal["left", "middle", "right"]
LINE_PITCH = 1.5  # of the size of the letters
GRAY: Color = (150, 150, 150)


@dataclass(frozen=True, slots=True)
class Cell:
    """Text from `x` on, at most `room` wide (page pixels), aligned in that room."""

    text: str
    x: float
    room: float
    align: Align = "left"
    bold: bool = False
    ink: Color | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, its share of the width, how its cells are aligned."""

    title: str
    share: float
    align: Align = "left"


class Sheet:
    """A page of `width` x `height` pixels, letters of `size` pixels; the next line begins at `y`."""

    def __init__(self, random: Random, typeface: Typeface, width: int, height: int, size: float) -> None:
        self.typeface = typeface
        self.paper = random_background(random)
        self.page = Canvas(width, height, 1.0, self.paper)
        self.size = size
        self.ink = random_ink(random)
        self.left = width * random.uniform(0.05, 0.1)
        self.right = width - self.left
        self.y = height * random.uniform(0.03, 0.06)
        self.bottom = height * 0.97
        self.lines: list[Run] = []
        # One look for all tables of a page.
        self.rules = random.choice(("header", "rows", "grid", "stripes"))
        self.accent: Color = (random.randint(40, 130), random.randint(40, 130), random.randint(60, 170))

    @property
    def width(self) -> float:
        """Between the margins."""
        return self.right - self.left

    @property
    def pitch(self) -> float:
        """From one line to the next."""
        return self.size * LINE_PITCH

    def lines_left(self) -> int:
        """Lines that fit under the cursor."""
        return int((self.bottom - self.y) / self.pitch)

    def skip(self, lines: float) -> None:
        """Leave this many lines empty."""
        self.y += lines * self.pitch

    def text_width(self, text: str, bold: bool = False, scale: float = 1.0) -> float:
        """Pixels that `text` takes."""
        return self.page.text_width(text, self._font(bold), self.size * scale)

    def line(self, *cells: Cell, scale: float = 1.0) -> list[Run]:
        """Write cells side by side; they are one line of the transcript."""
        runs = [self._draw(cell, scale) for cell in cells]
        self.lines.append(join([run for run in runs if run.text], " "))
        self.y += self.pitch * scale
        return runs

    def put(self, text: str, *, align: Align = "left", bold: bool = False, scale: float = 1.0) -> Run:
        """Write one line over the whole width."""
        return self.line(Cell(text, self.left, self.width, align, bold), scale=scale)[0]

    def block(self, texts: Sequence[str], align: Align = "left") -> Run:
        """Write lines below each other; the first as printed."""
        first, *_ = [self.put(text, align=align) for text in texts]
        return first

    def paragraph(self, text: str, *, spaced: bool) -> None:
        """Write text over as many lines as it takes; `spaced`: it is broken at blanks only."""
        words = text.split(" ") if spaced else list(text)
        separator = " " if spaced else ""
        line = words[0]
        for word in words[1:]:
            if self.text_width(line + separator + word) > self.width:
                self.put(line)
                line = word
            else:
                line += separator + word
        self.put(line)

    def fields(self, pairs: Sequence[tuple[str, str]], x: float, room: float, form: str) -> list[Run]:
        """Write labels with their values, one pair to a line; the values as printed.

        form: "colon", "columns" (values in a column of their own), "right" (values at the right end).
        """
        label_room = room * 0.45
        values = []
        for label, value in pairs:
            if form == "colon":
                run = self.line(Cell(f"{label}: {value}", x, room))[0].part(value)
            else:
                align: Align = "right" if form == "right" else "left"
                beside = Cell(value, x + label_room, room - label_room, align)
                run = self.line(Cell(label, x, label_room * 0.95), beside)[1]
            values.append(run)
        return values

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[list[Run]]:
        """Write a table over the whole width; its cells without the header, as printed.

        In the transcript its cells are parted by bars, and empty ones show.
        """
        total = sum(column.share for column in columns)
        top, pad = self.y, self.size * 0.3
        edges = [self.left]
        for column in columns:
            edges.append(edges[-1] + self.width * column.share / total)
        striped = self.rules == "stripes"
        red, green, blue = self.paper
        grid = []
        for index, row in enumerate([[column.title for column in columns], *rows]):
            is_header = index == 0
            if striped and index % 2 == 0:
                fill = self.accent if is_header else (red - 14, green - 14, blue - 12)
                self.page.rectangle((self.left, self.y, self.right, self.y + self.pitch), fill)
            ink: Color | None = (255, 255, 255) if is_header and striped else None
            cells = [
                Cell(text, start + pad, end - start - 2 * pad, column.align, is_header, ink)
                for text, (start, end), column in zip(row, pairwise(edges), columns, strict=True)
            ]
            grid.append([self._draw(cell, 1.0) for cell in cells])
            self.lines.append(join(grid[-1], " | "))
            self.y += self.pitch
            if is_header or self.rules in ("rows", "grid"):
                self.rule(self.ink if is_header else GRAY)
        if self.rules == "grid":
            for edge in edges:
                self.page.line([(edge, top), (edge, self.y)], GRAY, 1.0)
        return grid[1:]

    def rule(self, color: Color | None = None) -> None:
        """A line across, at the cursor."""
        self.page.line([(self.left, self.y), (self.right, self.y)], color or self.ink, 1.0)

    def _font(self, bold: bool) -> str:
        return self.typeface.bold if bold else self.typeface.regular

    def _draw(self, cell: Cell, scale: float) -> Run:
        """Letters as large as the room allows."""
        font, size = self._font(cell.bold), self.size * scale
        width = self.page.text_width(cell.text, font, size)
        if width > cell.room:
            size = floor(size * cell.room / width)
        x, y = cell.x + cell.room * SHARE_BEFORE[cell.align], self.y + self.pitch * scale / 2
        return self.page.text(x, y, cell.text, font, size, cell.ink or self.ink, cell.align)
