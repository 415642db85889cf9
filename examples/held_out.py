"""Draws documents that nano never saw, with their answers: python examples/held_out.py receipt 20 receipts/

Kinds: invoice, receipt, bar chart, line chart, and report: a PDF of an invoice, a bar chart and a line chart.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ernie_calibration.generated import held_out_samples
from ernie_calibration.sample import Sample

SEED = 2  # the model card and the tests of nano use others
PAGES = ("invoice", "bar chart", "line chart")
PRICE, POINT = re.compile(r"(?m)^(.+) (\d+\.\d\d)$"), re.compile(r"(?m)^(.+) (\d+)$")
TOTALS = ("total", "sum", "to pay")


def draw(folder: Path, kind: str, count: int) -> dict[str, dict[str, Any]]:
    """Draw `count` documents into `folder`; the right fields of each by the name of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = {}
    sources = [_samples(page) for page in (PAGES if kind == "report" else (kind,))]
    for index, pages in enumerate(islice(zip(*sources, strict=False), count)):
        path = folder / f"{kind.replace(' ', '-')}-{index}.{'pdf' if kind == 'report' else 'png'}"
        first, *others = [page.images[0] for page in pages]
        options = {"append_images": others, "save_all": True, "quality": 95} if others else {}
        first.save(path, **options)
        answers[path.name] = _report(pages) if kind == "report" else _fields(kind, pages[0])
    return answers


def rows(pattern: re.Pattern[str], text: str, name: str, value: str) -> list[dict[str, Any]]:
    """The lines of a text that end with a number, other than the total, as objects of two keys."""
    found = [row for row in pattern.findall(text) if row[0].lower() not in TOTALS]
    return [{name: label, value: float(number)} for label, number in found]


def _samples(kind: str) -> Iterator[Sample]:
    drawn = (sample for sample in held_out_samples(10**6, SEED, questions_each=99, transcript_every=1))
    return (sample for sample in drawn if sample.name.startswith(f"{kind}/"))


def _fields(kind: str, sample: Sample) -> dict[str, Any]:
    """What is printed, in the fields of the examples."""
    known, text = {turn.kind: turn.answer for turn in sample.turns}, sample.turns[-1].answer
    if kind.endswith("chart"):
        points = rows(POINT, text, "label", "value")
        return {"highest": max(points, key=lambda point: point["value"])["label"], "points": points}
    fields: dict[str, Any] = {"vendor": known["vendor"], "date": known["date"]}
    fields["total"] = float(re.sub("[^0-9.]", "", known["total"]))
    if kind == "invoice":
        return {"number": known["number"], **fields}
    return {**fields, "lines": rows(PRICE, text, "item", "price")}


def _report(pages: tuple[Sample, ...]) -> dict[str, Any]:
    invoice, bars, line = (_fields(kind, page) for kind, page in zip(PAGES, pages, strict=True))
    wanted = {name: invoice[name] for name in ("number", "date", "total")}
    return {**wanted, "best": bars["highest"], "peak": line["highest"]}


if __name__ == "__main__":
    draw(Path(sys.argv[3]), sys.argv[1], int(sys.argv[2]))
