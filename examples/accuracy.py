"""Counts how many fields the examples read right on held-out documents: python examples/accuracy.py

Right is equal to the last character, of lists every row; numbers are compared as numbers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import charts_to_data
import invoices_to_csv
import receipts_with_check
import report_pages
from held_out import draw

from ernie_local import load
from ernie_local.extraction.record import Record

SURE = 0.9
NUMBERS = {"total", "lines.price", "points.value"}
EXAMPLES = {
    "invoices_to_csv": ("invoice", invoices_to_csv.read),
    "receipts_with_check": ("receipt", receipts_with_check.read),
    "charts_to_data, bars": ("bar chart", charts_to_data.read),
    "charts_to_data, lines": ("line chart", charts_to_data.read),
    "report_pages": ("report", report_pages.read),
    "report_pages, per_file": ("report", partial(report_pages.read, per_file=True)),
}


def judged(record: Record, answers: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Fields, columns of lists, sure fields, and the whole document, each with whether it is right."""
    right, found = {}, record.fields or {}
    for name, answer in answers.items():
        if isinstance(answer, list):
            for column in answer[0]:
                shown = [row[column] for row in found.get(name, ())]
                right[f"{name}.{column}"] = shown == [row[column] for row in answer]
        else:
            right[name] = found.get(name) == answer
    yield from right.items()
    for name, is_right in right.items():
        if record.confidence.get(name, 0) >= SURE:
            yield f"fields of confidence {SURE} or more", is_right
    yield "**whole document**", all(right.values())
    numbers = all(is_right for name, is_right in right.items() if name in NUMBERS)
    if any("." in name for name in right):
        yield f"numbers where the check {'fails' if record.failed_checks else 'holds'}", numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=50, help="of each kind")
    options = parser.parse_args()
    model = load("nano")
    print(f"| example, {options.documents} documents each | right |\n|---|---|")
    for title, (kind, read) in EXAMPLES.items():
        right, judgements = Counter[str](), Counter[str]()
        with tempfile.TemporaryDirectory() as folder:
            answers = draw(Path(folder), kind, options.documents)
            for record in read(model, Path(folder)):
                for name, is_right in judged(record, answers[record.file]):
                    right[name] += is_right
                    judgements[name] += 1
        shown = ", ".join(f"{name} {right[name]} of {count}" for name, count in judgements.items())
        print(f"| {title} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
