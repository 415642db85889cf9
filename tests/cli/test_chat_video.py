"""`chat --video`: what is told, drawn and printed, and what is refused before a model is loaded."""

from __future__ import annotations

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
