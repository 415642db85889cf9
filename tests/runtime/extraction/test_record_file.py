"""The file of records: whole lines only, continued after a kill, never mixed with another run's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_local.errors import ErnieLocalError, InputUnreadable, UsageError
from ernie_local.extraction.record import Record, RecordError
from ernie_local.extraction.record_file import open_record_file, read_records
from tests.special_files import SPECIAL_FILES, within_seconds

IDENTITY = {"schema": "ab12", "model": "/models/nano"}
RECORDS = [
    Record("a.png", fields={"total": 12.5}, confidence={"total": 0.9}),
    Record("b.pdf", 2, fields={"total": None}, boxes={"total": (1, 2, 3, 4)}),
    Record("c\udcff.png", error=RecordError("InputUnreadable", "c.png", "why", "hint")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An output with RECORDS."""
    path = tmp_path / "out.jsonl"
    with open_record_file(path, IDENTITY) as file:
        for record in RECORDS:
            file.append(record)
    return path


def test_what_was_written_is_known_and_goes_on(path: Path) -> None:
    assert list(read_records(path)) == RECORDS
    with open_record_file(path, IDENTITY) as file:
        assert file.done == {record.key for record in RECORDS}
        assert file.num_broken == 1
        file.append(Record("d.png"))
    assert list(read_records(path)) == [*RECORDS, Record("d.png")]


@pytest.mark.parametrize("num_bytes", [1, 40, 150])
def test_half_a_line_is_cut_off(path: Path, num_bytes: int) -> None:
    os.truncate(path, path.stat().st_size - num_bytes)
    assert list(read_records(path)) == RECORDS[:2]
    with open_record_file(path, IDENTITY) as file:
        assert file.done == {record.key for record in RECORDS[:2]}
        file.append(RECORDS[2])
    assert list(read_records(path)) == RECORDS


def test_anew_begins_with_nothing(path: Path) -> None:
    with open_record_file(path, {"schema": "other"}, resume=False) as file:
        assert file.done == set()
        file.append(RECORDS[1])
    assert list(read_records(path)) == RECORDS[1:2]
    with open_record_file(path, {"schema": "other"}) as file:
        file.append(RECORDS[0])
    assert list(read_records(path)) == RECORDS[1::-1]


def test_records_are_kept_until_the_first_of_the_new_run(path: Path) -> None:
    with open_record_file(path, {"schema": "other"}, resume=False):
        pass
    with open_record_file(path, IDENTITY) as file:
        assert file.done == {record.key for record in RECORDS}


def test_records_of_another_run_are_refused_by_name(path: Path) -> None:
    before = path.read_bytes()
    with (
        pytest.raises(UsageError, match="holds records of another run: schema differ") as raised,
        open_record_file(path, {**IDENTITY, "schema": "cd34"}),
    ):
        pass
    assert raised.value.why == "schema was ab12, and is cd34"
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"version": "other/1"}'])
def test_records_of_an_unknown_run_are_refused(path: Path, content: bytes | None) -> None:
    state = path.with_name("out.jsonl.state")
    state.unlink()
    if content is not None:
        state.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be continued"), open_record_file(path, IDENTITY):
        pass
    with open_record_file(path, IDENTITY, resume=False) as file:
        assert file.done == set()


@pytest.mark.parametrize("resume", [True, False])
def test_another_file_is_left_as_it_is(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir")
    with (
        pytest.raises(UsageError, match="holds something else than records"),
        open_record_file(path, IDENTITY, resume=resume),
    ):
        pass
    assert path.read_text() == "Dear Sir"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("line", [b"{}\n", b"\xff\n", b"[1]\n"])
def test_a_damaged_line_is_told_by_its_number(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
    with (
        pytest.raises(InputUnreadable, match=r"line 4 of .*out\.jsonl is not a record"),
        open_record_file(path, IDENTITY),
    ):
        pass


def test_two_writers_are_refused(path: Path) -> None:
    with (
        open_record_file(path, IDENTITY),
        pytest.raises(UsageError, match="another process is writing"),
        open_record_file(path, IDENTITY),
    ):
        pass


@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_a_special_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    SPECIAL_FILES[kind](tmp_path / "out.jsonl")
    with (
        within_seconds(20),
        pytest.raises(ErnieLocalError),
        open_record_file(tmp_path / "out.jsonl", IDENTITY),
    ):
        pass


_FILL = """
import resource, sys
from pathlib import Path
from ernie_local.errors import ErnieLocalError
from ernie_local.extraction.record import Record
from ernie_local.extraction.record_file import open_record_file
with open_record_file(Path(sys.argv[1]), {}) as file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        for number in range(1000):
            file.append(Record(f"{number}.png"))
    except ErnieLocalError as error:
        print(number, error.what)
"""


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", _FILL, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    number, what = done.stdout.split(" ", 1)
    assert f"the record of {number}.png cannot be written: File too large" in what
    assert [record.file for record in read_records(path)] == [f"{each}.png" for each in range(int(number))]
    assert path.read_bytes().endswith(b"\n")
    assert 4700 < path.stat().st_size <= 5000


def test_the_lines_are_plain_json(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["file"] for line in lines] == ["a.png", "b.pdf", "c\udcff.png"]
    assert lines[0]["fields"] == {"total": 12.5}
    assert lines[2]["error"]["kind"] == "InputUnreadable"
