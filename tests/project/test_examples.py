"""Programs under examples/: their documents, and with nano what each of them says it makes."""

from __future__ import annotations

import csv
import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
from PIL import Image

import ernie_local
from ernie_calibration.clips import draw_clip
from ernie_local.extraction.record import Record
from ernie_local.media.open_video import open_video
from ernie_local.media.video_sampling import VideoSampling

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = (
    *("invoices_to_csv", "receipts_with_check", "charts_to_data", "report_pages"),
    *("forms_as_json", "count_and_compare", "watch_clips", "small_print"),
)
Rows = list[dict[str, str]]
RunExample = Callable[[str], str]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The examples import each other, as they do where they are started, and write where they stand."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def held_out() -> ModuleType:
    return importlib.import_module("held_out")


@pytest.fixture
def asked() -> ModuleType:
    return importlib.import_module("asked")


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunExample:
    """`run_example(name)`: run a script for the folder `drawn`; what it prints."""

    def run(name: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "drawn"])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def table(path: str) -> Rows:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_names_each_example_and_each_fits_a_screen() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    accuracy = importlib.import_module("accuracy")
    for title in (*accuracy.EXAMPLES, *accuracy.ASKED):
        assert f"| {title} |" in page
    for name in SCRIPTS:
        assert f"python examples/{name}.py" in page
        assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_receipts_add_up(held_out: ModuleType) -> None:
    """Whoever takes the lines from the transcript must find each, and neither the total nor the date."""
    answers = held_out.draw(Path("drawn"), "receipt", 10)
    assert len(answers) == 10
    for fields in answers.values():
        assert sum(line["price"] for line in fields["lines"]) == pytest.approx(fields["total"])


def test_charts_and_reports_have_their_answers(held_out: ModuleType) -> None:
    (bars,) = held_out.draw(Path("drawn"), "bar chart", 1).values()
    (line,) = held_out.draw(Path("drawn"), "line chart", 1).values()
    (invoice,) = held_out.draw(Path("drawn"), "invoice", 1).values()
    (report,) = held_out.draw(Path("drawn"), "report", 1).values()
    values = {point["label"]: point["value"] for point in bars["points"]}
    assert values[bars["highest"]] == max(values.values())
    assert (report["best"], report["peak"]) == (bars["highest"], line["highest"])
    assert {name: report[name] for name in ("number", "date", "total")}.items() <= invoice.items()
    assert Image.open("drawn/invoice-0.png").size > (200, 200)


@pytest.mark.parametrize("kind", ["form", "count", "sheet"])
def test_each_drawn_image_has_its_questions(asked: ModuleType, kind: str) -> None:
    turns = asked.draw(Path("drawn"), kind, 3)
    listed = [(path.name, question) for path, question in asked.questions_of(Path("drawn"))]
    assert listed == [(name, turn.question) for name, about in turns.items() for turn in about]
    assert len(turns) == 3
    for name, about in turns.items():
        assert about
        assert {turn.kind for turn in about} <= set(asked.KINDS[kind][1])
        assert Image.open(f"drawn/{name}").size > (200, 200)


def test_the_model_sees_a_drawn_clip_as_its_questions_mean_it(asked: ModuleType) -> None:
    """The runtime writes the times on frames that bear none: at the right place, on every frame."""
    video_config = ernie_local.load("nano").image_processor
    for index, name in enumerate(asked.draw(Path("drawn"), "clip", 3)):
        clip = draw_clip(
            f"examples/{asked.SEED}/{index}", num_frames=asked.FRAMES, width=224, height=140, held_out=True
        )
        video = open_video(f"drawn/{name}", video_config, VideoSampling(frames=asked.FRAMES))
        assert video.report.times == clip.times
        for number, frame in enumerate(clip.frames):
            wanted = numpy.asarray(frame.resize(video.report.resized_size), dtype=float)
            assert numpy.abs(video.store.read(number) - wanted).mean() < 4


def test_a_list_is_right_where_every_row_is() -> None:
    accuracy = importlib.import_module("accuracy")
    answers = {"total": 3.0, "lines": [{"item": "Pen", "price": 1.0}, {"item": "Ink", "price": 2.0}]}

    def judged(**fields: Any) -> dict[str, bool]:
        return dict(accuracy.judged(Record("a.png", fields=fields), answers))

    assert set(judged(**answers).values()) == {True}
    short = judged(total=3.0, lines=answers["lines"][:1])  # type: ignore[index]
    assert [name for name, is_right in short.items() if is_right] == ["total"]
    assert set(judged().values()) == {False}


@pytest.mark.slow
def test_invoices_become_a_table(held_out: ModuleType, run_example: RunExample) -> None:
    answers = held_out.draw(Path("drawn"), "invoice", 2)
    assert run_example("invoices_to_csv") == "2 invoices are in invoices.csv\n"
    for row in table("invoices.csv"):
        right = answers[row["file"]]
        assert (row["date"], float(row["total"])) == (right["date"], right["total"])
        assert row["number"] == right["number"] or "number" in row["review"]


@pytest.mark.slow
def test_receipts_that_do_not_add_up_are_named(held_out: ModuleType, run_example: RunExample) -> None:
    answers = held_out.draw(Path("drawn"), "receipt", 8)
    said = run_example("receipts_with_check")
    assert "8 receipts and their lines are in receipts.csv and receipts.lines.csv" in said
    wrong = []
    for row in table("receipts.csv"):
        lines = [line for line in table("receipts.lines.csv") if line["file"] == row["file"]]
        prices = [line["price"] for line in answers[row["file"]]["lines"]]
        if [float(line["price"]) for line in lines] != prices:
            wrong.append(row["file"])
    assert 0 < len(wrong) < 8
    assert all(f"look at {file}: total == sum(lines.price) (total is" in said for file in wrong)
    assert said.count("look at") == len(wrong)


@pytest.mark.slow
def test_charts_become_their_points(held_out: ModuleType, run_example: RunExample) -> None:
    answers = held_out.draw(Path("drawn"), "bar chart", 1) | held_out.draw(Path("drawn"), "line chart", 3)
    said = run_example("charts_to_data")
    assert "4 charts and their points are in charts.csv and charts.points.csv" in said
    assert {row["file"] for row in table("charts.csv")} == answers.keys()
    right = 0
    for file in ("line-chart-0.png", "line-chart-1.png", "line-chart-2.png"):
        points = [row for row in table("charts.points.csv") if row["file"] == file]
        found = [{"label": row["label"], "value": float(row["value"])} for row in points]
        right += found == answers[file]["points"]
    assert right >= 2


@pytest.mark.slow
def test_a_report_becomes_one_row(held_out: ModuleType, run_example: RunExample) -> None:
    answers = held_out.draw(Path("drawn"), "report", 1)
    assert run_example("report_pages") == "1 reports are in reports.csv\n"
    (row,), right = table("reports.csv"), answers["report-0.pdf"]
    assert (row["date"], float(row["total"])) == (right["date"], right["total"])
    assert row["peak"] == right["peak"]
    assert row["best"] not in ("", row["peak"])


@pytest.mark.slow
def test_the_table_of_accuracy_has_a_row_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--documents", "1"])
    runpy.run_path(str(FOLDER / "accuracy.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    accuracy = importlib.import_module("accuracy")
    titles = [*accuracy.EXAMPLES, *accuracy.ASKED]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {title}" for title in titles]
    assert all("whole document" in line for line in lines[2 : 2 + len(accuracy.EXAMPLES)])
    assert all(" of " in line for line in lines[2:])
