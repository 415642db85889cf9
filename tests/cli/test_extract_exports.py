"""`extract --csv`, `--xlsx` and `--html`: what they hold after each kind of run, and what is refused."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest
from PIL import Image

from ernie_local.errors import Interrupted
from ernie_local.extraction.run import FoundFields
from tests.cli.running import Command
from tests.cli.test_extract import WIDTH, StubReader, find_width


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images 10 to 12 wide and a broken one; a reader finds the widths."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for width in range(10, 13):
        Image.new("RGB", (width, 9)).save(folder / f"{width}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    use_reader(monkeypatch, find_width)
    return folder


def use_reader(monkeypatch: pytest.MonkeyPatch, read: Callable[[int], FoundFields]) -> None:
    monkeypatch.setattr("ernie_cli.extract.job.load_readers", lambda *_: [StubReader(read)])


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [[row["file"], row["width"], row["review"]] for row in csv.DictReader(file)]


WIDTHS = [
    ["10.png", "10", "width"],
    ["11.png", "11", "width"],
    ["12.png", "12", "width"],
    ["broken.png", "", ""],
]


@pytest.mark.parametrize("keeps", [True, False])
def test_all_records_are_written_in_each_form(
    command: Command, folder: Path, tmp_path: Path, keeps: bool
) -> None:
    names = {name: str(tmp_path / f"o.{name}") for name in ("csv", "xlsx", "html")}
    options = [word for name, path in names.items() for word in (f"--{name}", path)]
    out = ("--out", str(tmp_path / "o.jsonl")) if keeps else ()
    result = command("extract", str(folder), *WIDTH, "--min-confidence", "0.6", *options, *out)
    assert result.exit_code == 1
    assert result.stdout.count("\n") == (0 if keeps else 4)
    assert rows(tmp_path / "o.csv") == WIDTHS
    sheet = openpyxl.load_workbook(tmp_path / "o.xlsx").worksheets[0]
    assert [row[2] for row in sheet.iter_rows(min_row=2, values_only=True)] == [10, 11, 12, None]
    page = (tmp_path / "o.html").read_text(encoding="utf-8")
    assert (page.count("<article"), page.count("data:image/jpeg")) == (4, 3)
    assert f"table: {names['csv']} (4 documents)" in result.stderr
    assert f"page: {names['html']} (4 documents, 3 images)" in result.stderr
    value = command("extract", str(folder), *WIDTH, "--skip-errors", *options, "--json").json()
    assert value["tables"] == list(names.values())
    assert len(value["records"]) == 4


def test_records_of_earlier_runs_are_in_the_table(command: Command, folder: Path, tmp_path: Path) -> None:
    ask = ("extract", str(folder), *WIDTH, "--min-confidence", "0.6", "--out", str(tmp_path / "o.jsonl"))
    assert command(*ask, "--limit", "2").exit_code == 0
    table = tmp_path / "o.csv"
    command(*ask, "--csv", str(table))
    assert rows(table) == WIDTHS
    # Nothing is left to read; the table is made anew all the same.
    table.unlink()
    command(*ask, "--csv", str(table))
    assert rows(table) == WIDTHS


def test_a_stopped_run_has_tables_of_what_was_read(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(width: int) -> FoundFields:
        if width == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return find_width(width)

    use_reader(monkeypatch, stopping)
    table = tmp_path / "o.csv"
    result = command("extract", str(folder), *WIDTH, "--min-confidence", "0.6", "--csv", str(table))
    assert result.exit_code == 130
    assert rows(table) == WIDTHS[: result.stdout.count("\n")]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_run_that_is_stopped_before_its_first_record_leaves_the_tables(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    def stopping(_: int) -> FoundFields:
        os.kill(os.getpid(), signal.SIGINT)
        raise Interrupted("stopped", "a stop was asked for", "ask again")

    table = tmp_path / "o.csv"
    out = ("--out", str(tmp_path / "o.jsonl")) if keeps else ()
    ask = ("extract", str(folder), "--min-confidence", "0.6", "--csv", str(table), *out)
    command(*ask, *WIDTH)
    table.write_text("file,mine\n", encoding="utf-8")
    use_reader(monkeypatch, stopping)
    result = command(*ask, "--fields", "width: number", *(("--resume", "never") if keeps else ()))
    assert result.exit_code == 130
    assert "no tables: this run has no record yet" in result.stderr
    assert table.read_text(encoding="utf-8") == "file,mine\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--csv", "10.png"), "will not write a table over"),
        (("--xlsx", "notes.xlsx"), "will not write an Excel file over"),
        (("--html", "notes.txt"), "will not write a page over"),
        (("--xlsx", "o.csv"), "--xlsx o.xlsx"),
        (("--csv", "o.XLSX"), "--csv o.csv"),
        (("--csv", "no/o.csv"), "is not a directory"),
        (("--csv", "o", "--html", "o"), "is to be written twice"),
        (("--csv", "o.jsonl", "--out", "o.jsonl"), "is to be written twice"),
        (("--html", "../documents/o.jsonl", "--out", "o.jsonl"), "is to be written twice"),
        (("--html", "link", "--out", "o.jsonl"), "is to be written twice"),
        (("--html", "o.jsonl.state", "--out", "link"), "is to be written twice"),
        (("--csv", "o.csv", "--watch"), "--watch with a table, but without --out"),
    ],
)
def test_files_that_are_refused_before_anything_is_read(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], told: str
) -> None:
    def read(_: int) -> FoundFields:
        raise AssertionError

    use_reader(monkeypatch, read)
    monkeypatch.chdir(folder)
    for name in ("notes.txt", "notes.xlsx"):
        (folder / name).write_text("my notes")
    (folder / "link").symlink_to("o.jsonl")
    before = (folder / "10.png").read_bytes()
    result = command("extract", ".", *WIDTH, *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert ((folder / "notes.txt").read_text(), (folder / "10.png").read_bytes()) == ("my notes", before)
