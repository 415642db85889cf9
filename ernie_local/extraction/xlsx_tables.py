"""Writes records as an Excel file: a sheet of the documents, and one more for each list in the fields.

Numbers are numbers, dates are dates, and texts are texts: nothing is a formula or a link. Values to review
are yellow, documents whose checks failed or that could not be read are red. Rows are written to the disk one
by one, so that memory does not grow with the records.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_local.extraction.csv_tables import WrittenTables
from ernie_local.extraction.record import Record
from ernie_local.extraction.schema_sample import JSONSchema
from ernie_local.extraction.table_layout import RecordTables, TableCell, TableLayout
from ernie_local.files import shared_file

if TYPE_CHECKING:
    from xlsxwriter import Workbook
    from xlsxwriter.format import Format
    from xlsxwriter.worksheet import Worksheet

# What Excel takes.
_MOST_ROWS = 1 << 20
_MOST_SHEET_NAME = 31
_LARGEST_EXACT, _LARGEST_NUMBER = 2**53, 9.99e307  # its numbers are float64
_FIRST_YEAR = 1900
_NO_SHEET_NAME = re.compile(r"[\[\]:*?/\\\x00-\x1f]+")
_MAIN_NAME = "documents"
_FORMATS = {"date": "yyyy-mm-dd", "date-time": "yyyy-mm-dd hh:mm:ss"}
_YELLOW, _RED = "#fff2b3", "#f9c6bf"
_LEAST_WIDTH, _MOST_WIDTH = 10, 40  # of a column, in letters


def write_xlsx(path: Path, records: Iterable[Record], schema: JSONSchema) -> WrittenTables:
    """Write the tables of records, whose fields fit `schema`, to `path`, whole or not at all.

    A table of more rows than a sheet takes goes on in another sheet. UsageError as of RecordTables, and
    ErnieLocalError where the file cannot be written. Records are taken one by one.
    """
    from xlsxwriter import Workbook
    from xlsxwriter.exceptions import FileCreateError

    tables = RecordTables(schema)
    with (
        shared_file(path, "a table") as new,
        # The rows until the file is put together; in a folder of its own, so that none is left behind.
        tempfile.TemporaryDirectory(prefix="ernie-local-") as folder,
    ):
        book = Workbook(str(new), {"constant_memory": True, "tmpdir": folder})
        writer = _BookWriter(book, tables)
        try:
            for record in records:
                writer.write(record)
        finally:
            try:
                book.close()
            except FileCreateError as error:
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
    notes = []
    if writer.num_cut:
        notes.append(f"{writer.num_cut} texts were cut to the 32,767 characters that a cell of Excel takes")
    if writer.num_sheets > len(tables.layouts):
        notes.append(f"{writer.num_sheets} sheets, as one has at most {_MOST_ROWS:,} rows")
    return WrittenTables((path,), tuple(writer.num_rows), tuple(notes))


class _BookWriter:
    """Writes rows into the sheets of a workbook. num_cut: texts that were longer than a cell."""

    def __init__(self, book: Workbook, tables: RecordTables) -> None:
        self._book, self._tables = book, tables
        self._formats: dict[tuple[str, str], Format | None] = {("", ""): None}
        self._names: set[str] = {"history"}  # in lower case; this one is Excel's own
        self._sheets = [self._sheet(layout) for layout in tables.layouts]
        self._rows = [1] * len(self._sheets)
        self.num_rows = [0] * len(self._sheets)
        self.num_cut = 0

    @property
    def num_sheets(self) -> int:
        """With those that others go on in."""
        return len(self._book.worksheets())

    def write(self, record: Record) -> None:
        """Add the rows of a record."""
        review = frozenset(record.review)
        is_bad = bool(record.failed_checks) or record.error is not None
        for number, cells in self._tables.rows(record):
            if self._rows[number] == _MOST_ROWS:
                self._sheets[number], self._rows[number] = self._sheet(self._tables.layouts[number]), 1
            sheet, row = self._sheets[number], self._rows[number]
            for column, cell in enumerate(cells):
                colour = _YELLOW if cell.path in review else ""
                if is_bad and number == 0 and not cell.path:
                    colour = _RED
                self._write_cell(sheet, row, column, cell, colour)
            self._rows[number] += 1
            self.num_rows[number] += 1

    def _write_cell(self, sheet: Worksheet, row: int, column: int, cell: TableCell, colour: str) -> None:
        value, look = cell.value, self._format(colour)
        if value is None:
            if look is not None:
                sheet.write_blank(row, column, None, look)
        elif isinstance(value, bool):
            sheet.write_boolean(row, column, value, look)
        elif isinstance(value, int | float) and _is_exact(value):
            sheet.write_number(row, column, value, look)
        elif (moment := _moment(value, cell.form)) is not None:
            sheet.write_datetime(row, column, moment, self._format(colour, _FORMATS[cell.form]))
        else:
            text = str(value).encode("utf-8", "backslashreplace").decode()
            self.num_cut += sheet.write_string(row, column, text, look) == -2

    def _sheet(self, layout: TableLayout) -> Worksheet:
        sheet = self._book.add_worksheet(self._free_name(layout.name or _MAIN_NAME))
        sheet.freeze_panes(1, 0)
        bold = self._book.add_format({"bold": True, "bottom": 1})
        for column, name in enumerate(layout.header):
            sheet.write_string(0, column, name, bold)
            sheet.set_column(column, column, min(max(_LEAST_WIDTH, len(name) + 2), _MOST_WIDTH))
        return sheet

    def _free_name(self, wanted: str) -> str:
        wanted = _NO_SHEET_NAME.sub("_", wanted).strip("' ") or "list"
        number, name = 1, wanted[:_MOST_SHEET_NAME].strip("' ")
        while name.lower() in self._names:
            number += 1
            ending = f" ({number})"
            name = wanted[: _MOST_SHEET_NAME - len(ending)].rstrip("' ") + ending
        self._names.add(name.lower())
        return name

    def _format(self, colour: str, number_format: str = "") -> Format | None:
        key = (colour, number_format)
        if key not in self._formats:
            properties: dict[str, Any] = {"bg_color": colour} if colour else {}
            self._formats[key] = self._book.add_format(
                {**properties, **({"num_format": number_format} if number_format else {})}
            )
        return self._formats[key]


def _is_exact(value: int | float) -> bool:
    return abs(value) <= (_LARGEST_EXACT if isinstance(value, int) else _LARGEST_NUMBER)


def _moment(value: object, form: str) -> date | datetime | None:
    """A date that Excel has, of a text of this format; None for another, which stays a text."""
    if form not in _FORMATS or not isinstance(value, str):
        return None
    try:
        moment = date.fromisoformat(value) if form == "date" else datetime.fromisoformat(value)
    except ValueError:
        return None
    # Excel counts a day too many until February of 1900, and knows no time zones.
    has_zone = isinstance(moment, datetime) and moment.tzinfo is not None
    return None if has_zone or moment.year <= _FIRST_YEAR else moment
