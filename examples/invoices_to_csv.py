"""Reads a folder of invoices into a CSV file: python examples/invoices_to_csv.py [FOLDER]

Without a folder it draws ten invoices. A model that writes JSON needs no questions: ask="together".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from held_out import draw

from ernie_local import LoadedModel, ReadingOptions, extract, load
from ernie_local.extraction.csv_tables import write_csv
from ernie_local.extraction.record import Record
from ernie_local.structured import AnswerForm

FORM = AnswerForm.of(
    'vendor "Who is the vendor?", number "What is the invoice number?", date "What is the date?", '
    'total: number "What is the total?"'
)


def read(model: LoadedModel, folder: Path) -> Iterator[Record]:
    """A record of each invoice; values that the model was not sure of are under `review`."""
    options = ReadingOptions(FORM, ask="each", max_tokens=64)
    yield from extract(model, folder, options, min_confidence=0.9)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "invoices")
    if len(sys.argv) == 1:
        draw(folder, "invoice", 10)
    written = write_csv(Path("invoices.csv"), read(load("nano"), folder), FORM.schema or {})
    print(f"{written.num_rows[0]} invoices are in {written.paths[0]}")


if __name__ == "__main__":
    main()
