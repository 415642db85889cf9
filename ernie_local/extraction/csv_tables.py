"""Writes records as CSV files: one of the documents, and one more for each list in the fields.

UTF-8 with a byte order mark, without which Excel reads another encoding; commas and CRLF as of RFC 4180; null
is an empty cell. A spreadsheet runs text that begins with =, +, - or @ as a formula, and documents come from
strangers: an apostrophe goes in front of it, as OWASP advises, unless it is only a number.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ernie_local.extraction.record import Record
from ernie_local.extraction.schema_sample import JSONSchema
from ernie_local.extraction.table_layout import RecordTables, TableCell
from ernie_local.files import shared_file

# Also the wide forms, which some versions take for the same, and what a cell may begin with unseen.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?\d[\d.,]*")
_UNSAFE = re.compile(r'[<>:"/\\|?*\[\]\x00-\x1f\x7f]+')
_MOST_NAME_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class WrittenTables:
    """What was written. num_rows: of each file or sheet, without its header. notes: what was changed."""

    paths: tuple[Path, ...]
    num_rows: tuple[int, ...]
    notes: tuple[str, ...] = ()


def csv_paths(path: Path, schema: JSONSchema) -> list[Path]:
    """Where `write_csv` puts its files: `path`, and invoices.lines.csv beside invoices.csv for a list."""
    paths = [path]
    for layout in RecordTables(schema).layouts[1:]:
        name = _UNSAFE.sub("_", layout.name)[:_MOST_NAME_CHARACTERS].strip(" .") or "list"
        one, number = path.with_name(f"{path.stem}.{name}{path.suffix}"), 1
        while one in paths:
            number += 1
            one = path.with_name(f"{path.stem}.{name}-{number}{path.suffix}")
        paths.append(one)
    return paths


def write_csv(path: Path, records: Iterable[Record], schema: JSONSchema) -> WrittenTables:
    """Write the tables of records, whose fields fit `schema`, to `csv_paths`; each file whole or not at all.

    ErnieLocalError where one cannot be written. Records are taken one by one.
    """
    tables, paths = RecordTables(schema), csv_paths(path, schema)
    num_rows, num_marked = [0] * len(paths), 0
    with ExitStack() as stack:
        places = [stack.enter_context(shared_file(one, "a table")) for one in paths]
        writers = []
        # All are closed, and so on the disk, before the first takes its place.
        for new, layout in zip(places, tables.layouts, strict=True):
            # A name of a file may hold bytes that are no UTF-8.
            file = new.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="")
            writers.append(csv.writer(stack.enter_context(file)))
            writers[-1].writerow([_text(TableCell(name))[0] for name in layout.header])
        for record in records:
            for number, cells in tables.rows(record):
                written = [_text(cell) for cell in cells]
                writers[number].writerow([text for text, _ in written])
                num_rows[number] += 1
                num_marked += sum(is_marked for _, is_marked in written)
    notes: tuple[str, ...] = ()
    if num_marked:
        notes = (f"{num_marked} texts that a spreadsheet would run as formulas have an apostrophe in front",)
    return WrittenTables(tuple(paths), tuple(num_rows), notes)


def _text(cell: TableCell) -> tuple[str, bool]:
    """What is written for a value, and whether an apostrophe had to go in front."""
    value = cell.value
    if value is None:
        return "", False
    if isinstance(value, bool):
        return str(value).lower(), False
    if isinstance(value, int):
        return str(value), False
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f"), False
    if _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}", True
    return value, False
