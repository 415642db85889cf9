"""`chat --video`: what is told, drawn and printed, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ernie_local.text.reasoning import Piece
from tests.cli.running import Command, FakeChat
from tests.video_files import write_audio, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 50)


def test_a_video_is_told_and_its_moments_are_in_the_object_and_drawn(
    command: Command, fake_chat: FakeChat, clip: Path, tmp_path: Path
) -> None:
    fake_chat.pieces = (Piece("answer", "It turns at 0:03 and stops after 4.5 s, not at 1:00."),)
    out = tmp_path / "sheet.png"
    ask = ("chat", "-p", "When?", "--video", f"{clip}@0:01-", "--frames", "4", "--draw", str(out))
    result = command(*ask)
    assert result.exit_code == 0
    assert f"{clip}@0:01- 5.0 s, 4 of 50 frames, 64x48 -> " in result.stderr
    assert f"time 1: {clip}@0:01- 3 s" in result.stderr
    assert f"drawn: {out}" in result.stderr
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 480
    fake_chat.history = ()
    value = command(*ask, "--json").json()
    assert value["drawings"] == [str(out)]
    assert [(time["seconds"], time["text"], time["video"]) for time in value["times"]] == [
        (3, "0:03", 1),
        (4.5, "4.5 s", 1),
    ]
    (video,) = value["videos"]
    assert (video["size"], video["num_frames"], video["frames"]) == ([64, 48], 50, [10, 20, 30, 40])
    assert video["times"] == pytest.approx([1, 2, 3, 4])
    assert video["tokens"] > 500


def test_what_cannot_be_read_is_refused_before_the_model(
    command: Command, fake_chat: FakeChat, clip: Path, tmp_path: Path
) -> None:
    audio = write_audio(tmp_path / "a.m4a")
    ask = ("chat", "no/such/model", "-p", "a")
    for options, code, message in (
        (("--video", str(audio)), 5, "0 video streams"),
        (("--video", "none.mp4"), 5, "none.mp4: no such file"),
        (("--video", f"{clip}@1:00-2:00"), 5, "no frame from 60 s on, it takes 5.00 s"),
        (("--video", f"{clip}@0:04-0:02"), 2, "from 4 s to 2 s"),
        (("--video", ""), 2, "names no file"),
        (("--video", str(clip), "--fps", "1", "--frames", "4"), 2, "--fps 1.0 with --frames 4"),
        (("--fps", "1"), 2, "--fps 1 without a video"),
        (("--video", str(clip), "--frames", "181"), 2, "181"),
        (("--image", str(clip)), 5, "--video clip.mp4"),
    ):
        result = command(*ask, *options)
        assert (result.exit_code, message in result.stderr) == (code, True), (options, result.stderr)
    assert not fake_chat.questions


def test_typed_videos_wait_for_the_next_question(command: Command, fake_chat: FakeChat, clip: Path) -> None:
    spaced = clip.with_name("my clip.mp4")
    spaced.write_bytes(clip.read_bytes())
    lines = (
        f"/video {spaced}", "/video clear", "/video", f"/video '{spaced}'@0:01-0:03 {clip}", "/video",
        "/image", "one", "two", "/video none.mp4", f"/video {clip}@1:00-", "/video ''", "three",
    )  # fmt: skip
    stdin = "".join(f"{line}\n" for line in lines).encode()
    result = command("chat", "-i", "--frames", "2", stdin=stdin)
    assert result.exit_code == 0
    part = f"{spaced}@0:01-0:03"
    assert f"{part} 5.0 s, 2 of 50 frames, 64x48 -> 560x420, 300 tokens" in result.stderr
    assert "images waiting for the next question: none" in result.stderr
    assert f"videos waiting for the next question: {part}, {clip}\n" in result.stderr
    assert result.stderr.count("videos waiting for the next question: none") == 2
    for error in ("none.mp4: no such file", "no frame from 60 s on", "--video '' names no file"):
        assert f"{error}" in result.stderr
    assert [question.get("videos") for question in fake_chat.questions] == [[part, str(clip)], None, None]


def test_images_and_videos_are_dropped_by_themselves(
    command: Command, fake_chat: FakeChat, clip: Path, invoice: Path
) -> None:
    lines = (
        f"/video {clip}",
        f"/image {invoice}",
        "/image clear",
        "one",
        f"/image {invoice}",
        "/video clear",
        "two",
    )
    command("chat", "-i", stdin="".join(f"{line}\n" for line in lines).encode())
    asked = [(question["images"], question.get("videos")) for question in fake_chat.questions]
    assert asked == [([], [str(clip)]), ([str(invoice)], None)]


def test_a_chat_with_a_typed_video_is_saved_and_continued(
    command: Command, clip: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "chat.json"
    ask = ("chat", "nano", "-i", "--max-tokens", "3", "--frames", "2", "--save", str(saved))
    assert command(*ask, stdin=f"/video {clip}@0:02-\nWhat is this?\n".encode()).exit_code == 0
    content = json.loads(saved.read_text())
    assert content["version"] == 4
    video, _ = content["turns"][0]["question"][0]["content"]
    assert (video["video"], video["start"]) == (str(clip), 2)
    assert command(*ask, "--load", str(saved), stdin=b"And now?\n").exit_code == 0
    assert len(json.loads(saved.read_text())["turns"]) == 2
