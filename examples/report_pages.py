"""Reads reports of several pages, PDFs, into one row each: python examples/report_pages.py [FOLDER]

All reports have the same three pages: every page is asked for every field, and the page that has a field
counts. A model that reads several images at once is asked about the whole file: per_file=True.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from held_out import draw

from ernie_local import LoadedModel, ReadingOptions, extract, load
from ernie_local.extraction.csv_tables import write_csv
from ernie_local.extraction.record import Record
from ernie_local.structured import AnswerForm

FORM = AnswerForm.of(
    'number "What is the invoice number?", date "What is the date?", total: number "What is the total?", '
    'best "Which bar is the highest?", peak "When is the line the highest?"'
)
PAGE_OF = {"number": 1, "date": 1, "total": 1, "best": 2, "peak": 3}


def read(model: LoadedModel, folder: Path, *, per_file: bool = False) -> Iterator[Record]:
    """A record of each report; the confidence of a field is that of its page."""
    options = ReadingOptions(FORM, ask="each", max_tokens=64)
    records = extract(model, folder, options, per_file=per_file)
    for file, group in groupby(records, key=lambda record: record.file):
        pages = {record.page: record for record in group}
        source = {name: pages[None if per_file else page] for name, page in PAGE_OF.items()}
        fields = {name: page.fields[name] for name, page in source.items() if page.fields}
        confidence = {name: page.confidence[name] for name, page in source.items() if page.fields}
        yield Record(file, fields=fields, confidence=confidence)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "reports")
    if len(sys.argv) == 1:
        draw(folder, "report", 5)
    written = write_csv(Path("reports.csv"), read(load("nano"), folder), FORM.schema or {})
    print(f"{written.num_rows[0]} reports are in {written.paths[0]}")


if __name__ == "__main__":
    main()
