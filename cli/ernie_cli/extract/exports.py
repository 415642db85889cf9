"""Writes the records of `extract` in other forms: tables as CSV and for Excel, and a page for people."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ernie_cli.chat.request import check_output_path
from ernie_cli.console import Console
from ernie_cli.extract.options import ExtractOptions
from ernie_cli.extract.output import RecordOutput
from ernie_cli.extract.result import ExtractResult
from ernie_cli.status import counted
from ernie_local.errors import Interrupted, Stopped, UsageError
from ernie_local.extraction.csv_tables import csv_paths, write_csv
from ernie_local.extraction.record import Record
from ernie_local.extraction.record_file import read_records, state_path
from ernie_local.extraction.review_page import write_review_page
from ernie_local.extraction.table_layout import RecordTables
from ernie_local.extraction.xlsx_tables import write_xlsx

# A table of ours that was edited in Excel has lost its byte order mark, or has semicolons.
_CSV_BEGINNINGS = (b"\xef\xbb\xbf", b"file,", b"file;")


def output_paths(options: ExtractOptions, schema: Mapping[str, Any]) -> list[Path]:
    """All files that a run writes but drawings, which may lie among its documents."""
    tables = [] if options.csv is None else csv_paths(options.csv, schema)
    records = [] if options.out is None else [options.out, state_path(options.out)]
    return [*tables, *(path for path in (options.xlsx, options.html) if path is not None), *records]


def check_exports(options: ExtractOptions, schema: Mapping[str, Any]) -> None:
    """Raise UsageError for files that cannot be written, or would replace something else."""
    if options.csv is not None or options.xlsx is not None:
        RecordTables(schema)  # refuses a schema of too many columns
    for name, given in (("csv", options.csv), ("xlsx", options.xlsx)):
        if given is not None and (given.suffix.lower() == ".xlsx") != (name == "xlsx"):
            raise UsageError(
                f"--{name} {given}: a file of another kind by its name",
                "Excel opens a file only as what its name says",
                f"--{name} {given.with_suffix(f'.{name}')}",
            )
    for path in [] if options.csv is None else csv_paths(options.csv, schema):
        check_output_path(path, "a table", _CSV_BEGINNINGS, "records.csv")
    if options.xlsx is not None:
        check_output_path(options.xlsx, "an Excel file", b"PK", "records.xlsx")
    if options.html is not None:
        check_output_path(options.html, "a page", b"<!DOCTYPE html", "records.html")
    if (options.csv or options.xlsx or options.html) and options.watch and options.out is None:
        raise UsageError(
            "--watch with a table, but without --out",
            "a run that goes on and on keeps its records in the file of --out",
            "add --out records.jsonl",
        )
    paths = output_paths(options, schema)
    places = [os.path.realpath(path) for path in paths]
    if options.out is not None:
        places[-1] = str(state_path(Path(places[-2])))  # beside what --out leads to
    doubles = [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if doubles:
        raise UsageError(
            f"{doubles[0]} is to be written twice", "each output has a file of its own", "give another path"
        )


@contextmanager
def exported(
    options: ExtractOptions,
    schema: Mapping[str, Any],
    folder: Path,
    output: RecordOutput,
    console: Console,
    result: ExtractResult,
) -> Iterator[RecordOutput]:
    """The output of a run whose records are written in the other forms too when the block ends.

    Also where a signal has ended it. folder: from which the files of records count.
    """
    if not (options.csv or options.xlsx or options.html):
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="ernie-local-") as scratch:
        path = options.out or Path(scratch) / "records.jsonl"
        path.touch()
        try:
            yield output if options.out is not None else replace(output, write=_written_twice(output, path))
        except (Interrupted, Stopped):
            if result.documents or (result.done_before and options.resume == "auto"):
                _export(options, schema, folder, path, console, result)
            else:
                # A table of an earlier run stays, and the records that --resume never would have replaced.
                console.note("no tables: this run has no record yet")
            raise
        _export(options, schema, folder, path, console, result)


def _written_twice(output: RecordOutput, path: Path) -> Callable[[Record], None]:
    def write(record: Record) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{record.to_json()}\n")
        output.write(record)

    return write


def _export(
    options: ExtractOptions,
    schema: Mapping[str, Any],
    folder: Path,
    records: Path,
    console: Console,
    result: ExtractResult,
) -> None:
    with console.working("writing tables"):
        for path, write in ((options.csv, write_csv), (options.xlsx, write_xlsx)):
            if path is not None:
                tables = write(path, read_records(records), schema)
                result.tables += map(str, tables.paths)
                names = ", ".join(map(str, tables.paths))
                console.note(f"table: {names} ({counted(tables.num_rows[0], 'document')})")
                _warn(console, path, tables.notes)
        if options.html is not None:
            page = write_review_page(options.html, read_records(records), folder, password=options.password)
            result.tables.append(str(page.path))
            seen = f"{counted(page.num_documents, 'document')}, {counted(page.num_images, 'image')}"
            console.note(f"page: {page.path} ({seen})")
            _warn(console, page.path, page.notes)


def _warn(console: Console, path: Path, notes: tuple[str, ...]) -> None:
    for note in notes:
        console.warn(f"{path}: {note}")
