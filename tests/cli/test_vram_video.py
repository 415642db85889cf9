"""`vram --video`: a length with a size, and a file, cost what a chat with them takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import Command
from tests.video_files import write_video

VRAM = ("vram", "--bits", "4", "--ram", "32GiB", "--ctx-size", "80k")


def test_a_length_is_priced_in_frames_tokens_and_bytes(command: Command) -> None:
    value = command(*VRAM, "--video", "60s@1920x1080", "--json").json()
    (video,) = value["videos"]
    assert (video["seen_frames"], video["num_frames"], video["tokens"]) == (120, 1800, 69_000)
    assert video["patches"] == 8 * video["tokens"]
    assert video["stored_bytes"] == 120 * 1288 * 700 * 3
    assert video["kv_bytes"] == video["tokens"] * value["conversation"]["kv_bytes_per_token"]
    (image,) = value["images"]
    assert (image["tokens"], image["patches"]) == (69_000, 2 * 92 * 50)


def test_a_long_film_is_read_with_as_little_memory(command: Command) -> None:
    options = ("--frames", "20", "--json")
    short, film = (
        command(*VRAM, "--video", f"{length}@1280x720", *options).json()["videos"][0]
        for length in ("60s", "2h")
    )
    assert film["reader_bytes"] == short["reader_bytes"] <= 300 << 20
    assert film["tokens"] == short["tokens"]


def test_a_file_is_counted(command: Command, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 50)
    (video,) = command(*VRAM, "--video", f"{path}@0:01-", "--json").json()["videos"]
    assert (video["num_frames"], video["seen_frames"], video["seconds"]) == (50, 16, 5.0)
    assert f"{path}@0:01-: 5.0 s, 16 of 50 frames" in command(*VRAM, "--video", f"{path}@0:01-").stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--video", "60s@1920x1080", "--ctx-size", "32k"), 3, "the context has 32768"),
        (("--video", "0s@64x64"), 2, "at least 1 frame"),
        (("--video", "none.mp4"), 5, "no such file"),
        (("--fps", "2"), 2, "--fps 2 without a video"),
        (("--video", "60s@1920x1080", "--fps", "2", "--frames", "20"), 2, "--fps 2.0 with --frames 20"),
    ],
)
def test_what_cannot_be_priced_is_refused(
    command: Command, options: tuple[str, ...], code: int, message: str
) -> None:
    result = command(*VRAM, *options)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
