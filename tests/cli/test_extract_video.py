"""`extract` of videos: nano reads clips beside images, a dry run counts them, broken ones are named."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_local.extraction.record_file import read_records
from ernie_local.extraction.run import DocumentMedia, FoundFields
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import ChatVideo, VideoPart, open_chat_video
from tests.cli.running import Command
from tests.video_files import write_animation, write_video

ASK = ("--ask", "each", "--fields", "paid: boolean")
SIZE = (140, 112)
NUM_TOKENS = 20  # of two frames of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "below").mkdir()
    write_video(folder / "clip.mp4", 30, size=SIZE)
    write_video(folder / "below" / "clip.MKV", 20, size=SIZE)
    write_animation(folder / "moving.gif", [500] * 6, SIZE)
    write_animation(folder / "still.gif", [500])
    Image.new("RGB", (56, 56)).save(folder / "page.png")
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:700])
    (folder / "notes.ts").write_text("let x = 1")
    return folder


def test_nano_reads_clips_beside_images_and_goes_on(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    ask = ("extract", str(folder), *ASK, "--frames", "2", "--out", str(out))
    result = command(*ask)
    assert result.exit_code == 1
    assert "cut.mp4: 700 bytes: cannot be read as a video" in result.stderr
    assert "left out 1: notes.ts" in result.stderr
    records = {record.file: record for record in read_records(out)}
    videos = {"below/clip.MKV", "clip.mp4", "moving.gif"}
    assert records.keys() == {*videos, "cut.mp4", "page.png", "still.gif"}
    least = records["page.png"].prompt_tokens + NUM_TOKENS // 2
    for name, record in records.items():
        assert record.page is None
        assert (record.prompt_tokens > least) == (name in videos), record
        assert (record.fields is None) == (name == "cut.mp4")
    error = records["cut.mp4"].error
    assert error is not None
    assert error.kind == "InputUnreadable"
    before = out.read_bytes()
    assert command(*ask, "--skip-errors").exit_code == 0
    assert out.read_bytes() == before
    other = command("extract", str(folder), *ASK, "--frames", "4", "--out", str(out))
    assert other.exit_code == 2
    assert "detail was high, frames 2, and is high, frames 4" in other.stderr


def test_a_dry_run_counts_frames_and_tokens(command: Command, folder: Path) -> None:
    def forecast(path: Path, frames: int, *options: str) -> dict[str, Any]:
        ask = ("extract", str(path), *ASK, "--frames", str(frames), *options, "--json")
        value = command(*ask).json()
        found = value["forecast"] if options else value["records"][0]
        assert isinstance(found, dict)
        return found

    counted = forecast(folder, 2, "--dry-run")
    assert (counted["documents"], counted["unreadable"], counted["images"]) == (6, 1, 2)
    assert (counted["videos"], counted["frames"]) == (3, 6)
    clip = folder / "clip.mp4"
    more = forecast(clip, 4, "--dry-run")["prompt_tokens"] - forecast(clip, 2, "--dry-run")["prompt_tokens"]
    assert more == forecast(clip, 4)["prompt_tokens"] - forecast(clip, 2)["prompt_tokens"] == NUM_TOKENS
    shown = command("extract", str(folder), *ASK, "--fps", "1", "--dry-run").stdout
    assert shown.startswith("6 documents, 1 of them unreadable, 2 images, 3 videos of 38 frames in all\n")


def test_without_pyav_a_video_is_an_error_and_images_are_read(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = command("extract", str(folder / "clip.mp4"), str(folder / "page.png"), *ASK)
    clip, page = (json.loads(line) for line in result.stdout.splitlines())
    assert (clip["error"]["kind"], page["error"]) == ("InputUnreadable", None)
    assert clip["error"]["what"].endswith("clip.mp4: is a video, which this installation cannot read")
    assert clip["error"]["hint"] == "pip install 'ernie-local[video]'"
    assert "1 of 2 documents have no fields" in result.stderr


class MomentReader:
    """Finds one moment in each video, and the width of each image."""

    prompt_tokens = completion_tokens = 0

    def open_video(self, path: Path) -> ChatVideo:
        return open_chat_video(VideoPart(path, frames=4), ImageProcessorConfig(max_pixels=56 * 56))

    def read(self, media: Sequence[DocumentMedia]) -> FoundFields:
        (one,) = media
        return FoundFields({"at": "0:01"} if isinstance(one, ChatVideo) else {"at": "0:00"})

    def stop(self) -> None:
        pass


def test_moments_that_fields_name_are_drawn(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_cli.extract.job.load_readers", lambda *_: [MomentReader()])
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("clip.mp4", "page.png"):
        (documents / name).write_bytes((folder / name).read_bytes())
    page = tmp_path / "page.html"
    ask = (
        "extract",
        str(documents),
        "--fields",
        "at",
        "--draw",
        str(documents / "drawn"),
        "--html",
        str(page),
    )
    for _ in range(2):  # the sheet is no document
        assert len(command(*ask).stdout.splitlines()) == 2
    assert [path.name for path in (documents / "drawn").iterdir()] == ["clip.mp4.png"]
    with Image.open(documents / "drawn" / "clip.mp4.png") as sheet:
        assert sheet.width == 12 + 480 + 12
    assert page.read_text().count("<img") == 2


def test_a_dry_run_counts_a_video_beyond_the_context_as_unreadable(command: Command, folder: Path) -> None:
    ask = ("extract", str(folder / "clip.mp4"), *ASK, "--frames", "2", "--dry-run", "--ctx-size")
    for context_size, unreadable in ((NUM_TOKENS, 1), (1000, 0)):
        counted = command(*ask, str(context_size), "--json").json()["forecast"]
        assert (counted["unreadable"], counted["videos"]) == (unreadable, 1 - unreadable)


def test_frames_that_nothing_is_asked_of_are_named(command: Command, folder: Path) -> None:
    line = "without a video among the documents"
    for name, has_video in (("page.png", False), ("cut.mp4", True), ("clip.mp4", True)):
        result = command("extract", str(folder / name), *ASK, "--fps", "1.5", "--dry-run")
        assert (f"--fps 1.5 {line}" in result.stderr) != has_video, result.stderr
    assert line not in command("extract", str(folder / "page.png"), *ASK, "--dry-run").stderr


def test_contradicting_frames_are_refused(command: Command, folder: Path) -> None:
    result = command("extract", str(folder), *ASK, "--fps", "1", "--frames", "2")
    assert (result.exit_code, "--fps 1.0 with --frames 2" in result.stderr) == (2, True)


def test_a_part_of_a_video_is_no_document(command: Command, folder: Path) -> None:
    result = command("extract", f"{folder / 'clip.mp4'}@0:01-", *ASK)
    assert result.exit_code == 5
    assert "clip.mp4@0:01-: a part of a video cannot be chosen here" in result.stderr
    assert f"try: {folder / 'clip.mp4'}, and --frames 16" in result.stderr
