"""Reads the data of charts into CSV files: python examples/charts_to_data.py [FOLDER]

nano reads a chart out, and its lines are the data; which value is highest is a question of its own, and
where the two disagree a person should look. A model that writes JSON finds all in one answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from held_out import POINT, draw, rows

from ernie_local import Chat, LoadedModel, ReadingOptions, extract, load
from ernie_local.extraction.csv_tables import write_csv
from ernie_local.extraction.record import Record
from ernie_local.structured import AnswerForm

KINDS = ("bar chart", "line chart")
HIGHEST = {"bar": "Which bar is the highest?", "line": "When is the line the highest?"}
SCHEMA = AnswerForm.of("highest, points[]: {label, value: number}").schema or {}


def read(model: LoadedModel, folder: Path) -> Iterator[Record]:
    """A record of each bar-*.png and line-*.png; `failed_checks` says where the answers disagree."""
    chat = Chat(model)
    for kind in sorted({path.name.split("-")[0] for path in folder.iterdir()}):
        form = AnswerForm.of(f'highest "{HIGHEST[kind]}"')
        options = ReadingOptions(form, ask="each", max_tokens=64)
        for record in extract(model, folder, options, pattern=f"{kind}-*"):
            pieces = chat.ask("What is written here?", images=folder / record.file, max_tokens=200)
            points = rows(POINT, "".join(piece.text for piece in pieces), "label", "value")
            chat.undo()
            fields = {**(record.fields or {}), "points": points}
            top = max(points, key=lambda point: point["value"], default={"label": None})["label"]
            failed = () if top == fields.get("highest") else (f"highest == {top!r}",)
            yield replace(record, fields=fields, failed_checks=failed)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "charts")
    if len(sys.argv) == 1:
        for kind in KINDS:
            draw(folder, kind, 5)
    records = list(read(load("nano"), folder))
    written = write_csv(Path("charts.csv"), records, SCHEMA)
    print(f"{len(records)} charts and their points are in {' and '.join(map(str, written.paths))}")
    for record in records:
        if record.failed_checks:
            print(f"look at {record.file}: {record.fields}")


if __name__ == "__main__":
    main()
