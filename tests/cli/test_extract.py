"""`ernie-local extract` with readers that compute nothing: files, exit codes, kills, and what is refused."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_cli.main import run
from ernie_local.errors import Interrupted, NoAnswer
from ernie_local.extraction.record_file import read_records
from ernie_local.extraction.run import FoundFields
from ernie_local.media.open_image import OpenedImage
from tests.cli.running import Command

WIDTH = ("--fields", "width: integer")
Read = Callable[[int], FoundFields]


class StubReader:
    """Says what `read` makes of the width of the first image."""

    def __init__(self, read: Read) -> None:
        self.prompt_tokens = self.completion_tokens = 0
        self._read, self._is_stopped = read, False

    def read(self, images: Sequence[OpenedImage]) -> FoundFields:
        if self._is_stopped:
            raise Interrupted("stopped", "a stop was asked for", "ask again")
        self.prompt_tokens, self.completion_tokens = 100, 7
        return self._read(images[0].image.width)

    def stop(self) -> None:
        self._is_stopped = True


def find_width(width: int) -> FoundFields:
    return FoundFields({"width": width}, {"width": 0.5})


UseReaders = Callable[..., list[Any]]


@pytest.fixture
def use_readers(monkeypatch: pytest.MonkeyPatch) -> UseReaders:
    """`use_readers(read)`: in place of a model; the list gets the options of each loading."""

    def use(read: Read = find_width) -> list[Any]:
        loads: list[Any] = []

        def load(options: Any, *_others: object) -> list[StubReader]:
            loads.append(options)
            return [
                StubReader(read) for _ in range(1 if options.parallel == "auto" else int(options.parallel))
            ]

        monkeypatch.setattr("ernie_cli.extract.job.load_readers", load)
        return loads

    return use


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images 10 to 14 wide, one of them in a folder below, and a broken one."""
    folder = tmp_path / "documents"
    (folder / "below").mkdir(parents=True)
    for width in range(10, 15):
        Image.new("RGB", (width, 9)).save(folder / ("below" if width == 13 else ".") / f"{width}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def widths(path: Path) -> list[int | None]:
    return [None if record.fields is None else record.fields["width"] for record in read_records(path)]


def test_lines_go_to_stdout_and_words_to_stderr(
    command: Command, folder: Path, use_readers: UseReaders
) -> None:
    use_readers()
    result = command("extract", str(folder), *WIDTH, "--min-confidence", "0.6")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["file"] for record in records] == [
        "10.png", "11.png", "12.png", "14.png", "below/13.png", "broken.png",
    ]  # fmt: skip
    assert [record["fields"] for record in records[:2]] == [{"width": 10}, {"width": 11}]
    assert records[0]["review"] == ["width"]
    assert records[0]["prompt_tokens"] == 100
    assert records[-1]["error"]["kind"] == "InputUnreadable"
    assert result.exit_code == 1
    assert "1 of 6 documents have no fields" in result.stderr
    assert "broken.png: this PNG image cannot be decoded" in result.stderr


def test_the_object_counts_and_holds_the_records(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    use_readers()
    value = command("extract", str(folder), *WIDTH, "--json", "--check", "width > 11").json()
    assert (value["documents"], value["broken"], value["failing"]) == (6, 1, 0)
    assert [record["fields"] for record in value["records"]] == [
        *({"width": w} for w in (10, 11, 12, 14, 13)),
        None,
    ]
    assert value["ok"] is False
    assert value["prompt_tokens"] == 500
    result = command(
        "extract", str(folder), *WIDTH, "--json", "--skip-errors", "--out", str(tmp_path / "x.jsonl")
    )
    assert result.exit_code == 0
    assert result.json()["records"] == []
    assert result.json()["broken"] == 1


def test_a_second_run_reads_only_what_is_new(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    loads, out = use_readers(), tmp_path / "out.jsonl"
    arguments = ("extract", str(folder), *WIDTH, "--out", str(out))
    assert command(*arguments, "--limit", "2").exit_code == 0
    assert widths(out) == [10, 11]
    assert command(*arguments).exit_code == 1
    assert widths(out) == [10, 11, 12, 14, 13, None]
    before = out.read_bytes()
    result = command(*arguments)
    assert result.exit_code == 1  # the broken one is still there
    assert len(loads) == 2  # nothing to read, so no model was loaded
    assert out.read_bytes() == before
    assert "6 were there before" in result.stderr
    Image.new("RGB", (15, 9)).save(folder / "15.png")
    command(*arguments)
    assert widths(out) == [10, 11, 12, 14, 13, None, 15]
    command(*arguments, "--resume", "never", "--limit", "1")
    assert widths(out) == [10]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (("--fields", "width: number"), "schema"),
        ((*WIDTH, "--ask", "each"), "ask"),
        ((*WIDTH, "--check", "width > 1"), "check"),
        ((*WIDTH, "--prompt", "How wide?"), "prompt"),
        ((*WIDTH, "--per-file"), "per-file"),
        ((*WIDTH, "--max-pixels", "100k"), "image size"),
    ],
)
def test_records_of_another_run_are_left_alone(
    command: Command,
    folder: Path,
    use_readers: UseReaders,
    tmp_path: Path,
    changed: tuple[str, ...],
    name: str,
) -> None:
    loads, out = use_readers(), tmp_path / "out.jsonl"
    command("extract", str(folder), *WIDTH, "--out", str(out), "--limit", "2")
    before = out.read_bytes()
    result = command("extract", str(folder), *changed, "--out", str(out))
    assert result.exit_code == 2
    assert f"holds records of another run: {name} differ" in result.stderr
    assert "--resume never" in result.stderr
    assert len(result.stderr.splitlines()) == 3
    assert out.read_bytes() == before
    assert len(loads) == 1


def test_another_folder_is_another_run(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    use_readers()
    out = tmp_path / "out.jsonl"
    command("extract", str(folder), *WIDTH, "--out", str(out))
    result = command("extract", str(folder / "below"), *WIDTH, "--out", str(out))
    assert result.exit_code == 2
    assert "another run: folder differ" in result.stderr


WRONG = {
    "no fields": ((), "no fields were named"),
    "both": ((*WIDTH, "--schema", "{}"), "--schema and --fields are given"),
    "no schema": (("--schema", '{"type": "table"}'), "cannot be used at $.type"),
    "no JSON": (("--schema", '{"type": '), "is not a JSON object"),
    "no such file": (("--schema", "nowhere.json"), "the schema nowhere.json cannot be read"),
    "a list": (("--schema", '{"type": "array", "items": {"type": "string"}}'), "--schema names no fields"),
    "without end": (
        ("--schema", '{"properties": {"x": {"$ref": "#"}}, "required": ["x"], "type": "object"}'),
        "--schema cannot be used",
    ),
    "a name twice": (("--fields", "width, width"), "the field 'width' stands twice"),
    "an unknown field": ((*WIDTH, "--check", "height > 1"), "there is no field height"),
    "a power": ((*WIDTH, "--check", "width ** 9 > 1"), "is not read here"),
    "retry": ((*WIDTH, "--retry"), "--retry without --check"),
    "parallel": ((*WIDTH, "--parallel", "0"), "--parallel 0 is not a number from 1 to 16"),
    "parallel word": ((*WIDTH, "--parallel", "many"), "--parallel many is not a number from 1 to 16"),
    "never": ((*WIDTH, "--resume", "never"), "--resume never without --out"),
    "boxes of files": ((*WIDTH, "--boxes", "--per-file"), "--boxes with --per-file"),
    "boxes of values": ((*WIDTH, "--boxes", "--ask", "each"), "--boxes with --ask each"),
    "nan": ((*WIDTH, "--min-confidence", "nan"), "--min-confidence nan is not a number"),
    "watch": ((*WIDTH, "--watch", "--dry-run"), "--watch with --dry-run"),
    "tokens": ((*WIDTH, "--max-tokens", "0"), "--max-tokens '0' is 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_means_nothing_is_told_before_a_model_is_loaded(
    command: Command, folder: Path, use_readers: UseReaders, wrong: str
) -> None:
    loads = use_readers()
    arguments, message = WRONG[wrong]
    result = command("extract", str(folder), *arguments)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 3
    assert result.exit_code == (5 if wrong == "no such file" else 2)
    assert not result.stdout
    assert not loads


def test_a_schema_comes_from_a_file(command: Command, folder: Path, use_readers: UseReaders) -> None:
    use_readers()
    path = folder.parent / "schema.json"
    path.write_text(
        '\ufeff{"type": "object", "properties": {"width": {"type": "integer"}}}', encoding="utf-8"
    )
    assert command("extract", str(folder / "10.png"), "--schema", str(path)).exit_code == 0
    path.write_text("width: integer", encoding="utf-8")
    assert "is not a JSON object" in command("extract", str(folder), "--schema", str(path)).stderr
    path.write_bytes(b"\xff")
    assert "it is not UTF-8 text" in command("extract", str(folder), "--schema", str(path)).stderr


def test_of_broken_documents_no_speed_is_told(
    command: Command, tmp_path: Path, use_readers: UseReaders
) -> None:
    use_readers()
    (tmp_path / "broken.png").write_bytes(b"no image")
    result = command("extract", str(tmp_path), *WIDTH)
    assert "1 document in " in result.stderr
    assert "an hour" not in result.stderr
    assert command("extract", str(tmp_path), *WIDTH, "--json").json()["documents_per_hour"] is None


def test_pages_named_behind_a_document_are_refused_with_its_name(
    command: Command, folder: Path, use_readers: UseReaders
) -> None:
    use_readers()
    result = command("extract", f"{folder / '10.png'}:1-3", *WIDTH)
    assert result.exit_code == 5
    assert "pages cannot be chosen here" in result.stderr
    assert f"try: {folder / '10.png'}, and --limit 3 to end early" in result.stderr
    assert "no such file" in command("extract", f"{folder / '99.png'}:1-3", *WIDTH).stderr


def test_who_closes_stdout_is_told_what_is_lost(
    folder: Path, use_readers: UseReaders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe", "stdout")

    use_readers()
    monkeypatch.setattr("sys.stdout", Closed())
    assert run(["extract", str(folder), *WIDTH]) == 1
    told = capsys.readouterr().err
    assert "stdout: it was closed before the record of 10.png" in told
    assert "with --out FILE" in told


def test_no_documents_are_told(command: Command, tmp_path: Path, use_readers: UseReaders) -> None:
    use_readers()
    (tmp_path / "notes.txt").write_text("no image")
    result = command("extract", str(tmp_path), *WIDTH)
    assert result.exit_code == 5
    assert "0 images, PDFs or videos" in result.stderr
    result = command("extract", str(tmp_path), *WIDTH, "--glob", "*.png")
    assert "0 files that --glob '*.png' matches" in result.stderr
    result = command("extract", str(tmp_path / "nothing"), *WIDTH)
    assert result.exit_code == 5
    assert "no such file or folder" in result.stderr


def test_documents_without_an_answer_are_broken(
    command: Command, folder: Path, use_readers: UseReaders
) -> None:
    def read(width: int) -> FoundFields:
        raise NoAnswer("no answer", "max_tokens ended it", "more")

    use_readers(read)
    value = command("extract", str(folder / "10.png"), *WIDTH, "--json").json()
    assert value["records"][0]["error"]["kind"] == "NoAnswer"
    assert value["records"][0]["prompt_tokens"] == 100
    assert value["error"]["exit_code"] == 1


def test_several_are_read_at_once(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    together = threading.Barrier(3)

    def read(width: int) -> FoundFields:
        if width < 13:
            together.wait(20)  # nobody comes through alone
        return find_width(width)

    use_readers(read)
    out = tmp_path / "out.jsonl"
    command("extract", str(folder), *WIDTH, "--out", str(out), "--parallel", "3")
    assert sorted(width or 0 for width in widths(out)) == [0, 10, 11, 12, 13, 14]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_run_after_what_is_written(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path, number: int, exit_code: int
) -> None:
    def read(width: int) -> FoundFields:
        if width == 12:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            raise Interrupted("stopped", "a stop was asked for", "ask again")
        return find_width(width)

    use_readers(read)
    out = tmp_path / "out.jsonl"
    result = command("extract", str(folder), *WIDTH, "--out", str(out))
    assert result.exit_code == exit_code
    assert "after 2 documents" in result.stderr
    assert widths(out) == [10, 11]
    use_readers()
    command("extract", str(folder), *WIDTH, "--out", str(out))
    assert widths(out) == [10, 11, 12, 14, 13, None]


def test_two_runs_do_not_write_to_one_file(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["extract", str(folder), *WIDTH, "--out", str(out)]
    codes: list[int] = []

    def read(width: int) -> FoundFields:
        if not codes:
            codes.append(-1)
            codes.append(_in_child(arguments))
        return find_width(width)

    use_readers(read)
    command(*arguments)
    assert codes == [-1, 2]
    assert widths(out) == [10, 11, 12, 14, 13, None]


def test_a_full_disk_ends_the_run_and_loses_nothing(
    folder: Path, use_readers: UseReaders, tmp_path: Path, command: Command
) -> None:
    use_readers()
    out = tmp_path / "out.jsonl"
    arguments = ["extract", str(folder), *WIDTH, "--out", str(out)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))  # noqa: E731
    assert _in_child(arguments, limit) == 1
    before = widths(out)
    assert 0 < len(before) < 6
    assert command(*arguments).exit_code == 1
    assert widths(out) == [10, 11, 12, 14, 13, None]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_stdout_that_is_full_is_told(folder: Path, use_readers: UseReaders) -> None:
    use_readers()

    def fill() -> None:
        import sys

        from ernie_cli.streams import protect_streams

        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        sys.stdout = sys.__stdout__
        protect_streams()

    assert _in_child(["extract", str(folder), *WIDTH], fill) == 1


def test_kills_at_any_moment_lose_and_double_nothing(
    folder: Path, use_readers: UseReaders, tmp_path: Path, command: Command
) -> None:
    """15 kills: after each, whole lines but the last; in the end every document once."""
    for width in range(20, 200):
        Image.new("RGB", (width, 9)).save(folder / f"{width}.png")

    def read(width: int) -> FoundFields:
        time.sleep(0.002)
        return find_width(width)

    use_readers(read)
    out = tmp_path / "out.jsonl"
    arguments = ["extract", str(folder), *WIDTH, "--out", str(out), "--parallel", "2"]
    moments = random.Random(7)
    counts = [0]
    for _ in range(15):
        num_bytes = (out.stat().st_size if out.exists() else 0) + moments.randrange(1500)
        _in_child(arguments, kill_when=partial(_is_longer, out, num_bytes, moments.uniform(0, 0.003)))
        lines = out.read_bytes().splitlines(keepends=True) if out.exists() else []
        assert all(line.endswith(b"\n") for line in lines[:-1])
        counts.append(sum(line.endswith(b"\n") for line in lines))
    assert counts == sorted(counts)
    assert 15 < counts[-1] < 186
    command(*arguments)
    records = list(read_records(out))
    files = [record.file for record in records]
    assert sorted(files) == sorted({*files})
    assert len(files) == 186
    assert sorted(width for width in widths(out) if width) == [*range(10, 15), *range(20, 200)]


def test_watching_takes_files_that_come(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_local.extraction.watch.watched_files.__defaults__", (0.05,))

    def read(width: int) -> FoundFields:
        if width == 12:
            Image.new("RGB", (40, 9)).save(folder / "late.png")
        return find_width(width)

    use_readers(read)
    out = tmp_path / "out.jsonl"
    command("extract", str(folder), *WIDTH, "--out", str(out), "--watch", "--limit", "7")
    assert widths(out) == [10, 11, 12, 14, 13, None, 40]


def test_watching_ends_where_a_record_cannot_be_written(
    folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    use_readers()
    arguments = ["extract", str(folder), *WIDTH, "--out", str(tmp_path / "out.jsonl"), "--watch"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
        signal.alarm(60)  # kills what waits for ever

    assert _in_child(arguments, limit) == 1


def test_a_dry_run_counts_and_loads_nothing(
    command: Command, folder: Path, use_readers: UseReaders, no_weights: None
) -> None:
    loads = use_readers()
    value = command("extract", str(folder), *WIDTH, "--dry-run", "--json").json()
    assert value["forecast"]["documents"] == 6
    assert value["forecast"]["unreadable"] == 1
    assert value["forecast"]["images"] == 5
    assert value["forecast"]["prompt_tokens"] > 5
    assert 0 < value["forecast"]["seconds_low"] <= value["forecast"]["seconds_likely"]
    assert not loads
    result = command("extract", str(folder), "--fields", "a, b", "--ask", "each", "--dry-run")
    assert result.stdout.startswith("6 documents, 1 of them unreadable, 5 images\n")
    assert result.exit_code == 0


def test_a_dry_run_counts_what_this_run_would_read_and_write(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    use_readers()
    out = ("--out", str(tmp_path / "out.jsonl"))

    def forecast(*options: str) -> dict[str, Any]:
        found = command("extract", str(folder), *WIDTH, "--dry-run", "--json", *options).json()["forecast"]
        assert isinstance(found, dict)
        return found

    plain = forecast(*out)
    boxes = forecast("--boxes")
    assert boxes["prompt_tokens"] > plain["prompt_tokens"] + 5 * 20  # told in the instruction
    assert boxes["completion_tokens"] > plain["completion_tokens"] + 5 * 16
    thoughts = forecast("--think", "on", "--think-budget", "100")
    assert thoughts["thought_tokens"] == 500
    assert thoughts["completion_tokens"] == plain["completion_tokens"] + 500
    assert forecast("--think", "on")["seconds_high"] > thoughts["seconds_high"]
    each = forecast("--ask", "each", "--think", "on", "--think-budget", "100")
    assert each["thought_tokens"] == 500
    retried = forecast("--check", "width > 0", "--retry")
    assert retried["seconds_high"] > plain["seconds_high"]
    assert retried["seconds_likely"] == plain["seconds_likely"]
    command("extract", str(folder), *WIDTH, *out, "--limit", "2")
    value = command("extract", str(folder), *WIDTH, "--dry-run", "--json", *out).json()
    assert (value["done_before"], value["forecast"]["documents"], value["forecast"]["images"]) == (2, 4, 3)
    assert forecast(*out, "--resume", "never")["documents"] == 6
    assert command("extract", str(folder), "--fields", "width", "--dry-run", *out).exit_code == 2


def test_boxes_are_drawn_on_copies(
    command: Command, folder: Path, use_readers: UseReaders, tmp_path: Path
) -> None:
    use_readers(lambda width: FoundFields({"width": width}, {}, {"width": (1, 1, 5, 5)}))
    command("extract", str(folder), *WIDTH, "--draw", str(folder / "drawn"))
    drawn = sorted(
        path.relative_to(folder / "drawn").as_posix() for path in (folder / "drawn").rglob("*.png")
    )
    assert drawn == ["10.png.png", "11.png.png", "12.png.png", "14.png.png", "below/13.png.png"]
    for options in (("--draw", str(folder / "drawn")), ("--draw", str(folder)), (), ("--glob", "*.png")):
        again = command("extract", str(folder), *WIDTH, *options)
        assert len(again.stdout.splitlines()) == 6  # drawings are no documents
    assert "left out 5: 10.png.png" in again.stderr or "--glob" in options


def test_outputs_among_the_documents_are_none(
    command: Command, folder: Path, use_readers: UseReaders
) -> None:
    use_readers()
    outputs = [
        word
        for name in ("out", "csv", "xlsx", "html")
        for word in (f"--{name}", str(folder / f"x.{'jsonl' if name == 'out' else name}"))
    ]
    for _ in range(2):
        result = command("extract", str(folder), *WIDTH, "--glob", "*", *outputs, "--json").json()
        assert result["done_before"] + result["documents"] == 6


def test_what_is_wrong_with_boxes_is_in_the_record_and_the_summary(
    command: Command, folder: Path, use_readers: UseReaders
) -> None:
    use_readers(lambda width: FoundFields({"width": width}, notes=("width: no box",) * (width < 12)))
    result = command("extract", str(folder), *WIDTH, "--boxes", "--skip-errors")
    assert json.loads(result.stdout.splitlines()[0])["notes"] == ["width: no box"]
    assert "2 with notes on their boxes" in result.stderr


def test_a_closed_folder_is_one_error(
    command: Command, folder: Path, use_readers: UseReaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_readers()
    scan = os.scandir

    def scan_or_refuse(path: Any) -> Any:
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_or_refuse)
    (folder / "broken.png").unlink()
    result = command("extract", str(folder), *WIDTH)
    assert result.exit_code == 1
    assert "1 of 5 documents have no fields" in result.stderr
    assert "below: cannot be read" in result.stderr
    assert command("extract", str(folder), *WIDTH, "--skip-errors").exit_code == 0


def _in_child(
    arguments: Sequence[str],
    prepare: Callable[[], object] | None = None,
    kill_when: Callable[[], bool] | None = None,
) -> int:
    """The exit code of the command in a process of its own, which is killed when that is so."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if prepare is not None:
                prepare()
            code = run(list(arguments))
        finally:
            os._exit(code)
    if kill_when is not None:
        while not kill_when():
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _is_longer(path: Path, num_bytes: int, seconds: float) -> bool:
    """Whether the file is longer than this; then also so many seconds pass."""
    if not path.exists() or path.stat().st_size <= num_bytes:
        return False
    time.sleep(seconds)
    return True
