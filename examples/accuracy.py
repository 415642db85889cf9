"""Counts what the examples read right on held-out files: python examples/accuracy.py

Right is equal to the last character, of lists every row; numbers are compared as numbers, JSON by its values,
and a place has to overlap the right one by half.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asked
import charts_to_data
import count_and_compare
import forms_as_json
import invoices_to_csv
import receipts_with_check
import report_pages
import small_print
import watch_clips
from held_out import draw

from ernie_calibration.scoring import score
from ernie_local import LoadedModel, load
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
# Questions of their own for each file.
ASKED = {
    "forms_as_json": ("form", forms_as_json.read),
    "count_and_compare": ("count", count_and_compare.read),
    "watch_clips": ("clip", watch_clips.read),
    "small_print": ("sheet", small_print.read),
    "small_print, without zoom": ("sheet", partial(small_print.read, zoom=False)),
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


def count_fields(model: LoadedModel, title: str, folder: Path, documents: int) -> Iterator[tuple[str, bool]]:
    """What an example of EXAMPLES reads from each document, and whether it is right."""
    kind, read = EXAMPLES[title]
    answers = draw(folder, kind, documents)
    for record in read(model, folder):
        yield from judged(record, answers[record.file])


def count_answers(model: LoadedModel, title: str, folder: Path, files: int) -> Iterator[tuple[str, bool]]:
    """The kind of each question that an example of ASKED asks, and whether its answer is right."""
    kind, read = ASKED[title]
    turns = asked.draw(folder, kind, files)
    known = {(name, turn.question): turn for name, listed in turns.items() for turn in listed}
    for name, question, answer in read(model, folder):
        turn = known.pop((name, question))
        yield turn.kind, score(turn.kind, answer.text, turn.answer) == 1.0
    yield from ((turn.kind, False) for turn in known.values())  # those without an answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=50, help="of each kind")
    options = parser.parse_args()
    model = load("nano")
    print(f"| example, {options.documents} files each | right |\n|---|---|")
    for title in (*EXAMPLES, *ASKED):
        right, judgements = Counter[str](), Counter[str]()
        count = count_fields if title in EXAMPLES else count_answers
        with tempfile.TemporaryDirectory() as folder:
            for name, is_right in count(model, title, Path(folder), options.documents):
                right[name] += is_right
                judgements[name] += 1
        shown = ", ".join(f"{name} {right[name]} of {number}" for name, number in judgements.items())
        print(f"| {title} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
