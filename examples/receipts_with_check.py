"""Reads receipts, and checks that the prices add up: python examples/receipts_with_check.py [FOLDER]

nano writes no lists, so it reads the receipt out and the lines are taken from its text; the total is a
question of its own. A model that writes JSON finds all in one answer: examples/README.md has its command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from held_out import PRICE, draw, rows

from ernie_local import Chat, LoadedModel, ReadingOptions, extract, load
from ernie_local.extraction.checks import failed_checks, parse_check
from ernie_local.extraction.csv_tables import write_csv
from ernie_local.extraction.record import Record
from ernie_local.structured import AnswerForm

QUESTIONS = 'vendor "Which shop is it?", date "What is the date?", total: number "What is the total?"'
SCHEMA = AnswerForm.of(f"{QUESTIONS}, lines[]: {{item, price: number}}").schema or {}
CHECK = parse_check("total == sum(lines.price)", SCHEMA)


def read(model: LoadedModel, folder: Path) -> Iterator[Record]:
    """A record of each receipt, with its lines; `failed_checks` says where they do not add up."""
    chat = Chat(model)
    for record in extract(model, folder, ReadingOptions(AnswerForm.of(QUESTIONS), ask="each", max_tokens=64)):
        pieces = chat.ask("What is written here?", images=folder / record.file, max_tokens=200)
        lines = rows(PRICE, "".join(piece.text for piece in pieces), "item", "price")
        chat.undo()
        fields = {**(record.fields or {}), "lines": lines}
        failed = tuple(check.text for check in failed_checks([CHECK], fields))
        yield replace(record, fields=fields, failed_checks=failed)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "receipts")
    if len(sys.argv) == 1:
        draw(folder, "receipt", 10)
    records = list(read(load("nano"), folder))
    written = write_csv(Path("receipts.csv"), records, SCHEMA)
    print(f"{len(records)} receipts and their lines are in {' and '.join(map(str, written.paths))}")
    for record in records:
        if record.failed_checks:
            print(f"look at {record.file}: {CHECK.describe(record.fields or {})}")


if __name__ == "__main__":
    main()
