"""Folders and patterns in the place of an image: which files they stand for, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.running import Command, FakeChat


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three images, a text, a hidden image and a folder; the working directory is above it."""
    folder = tmp_path / "scans"
    (folder / "more.png").mkdir(parents=True)
    for name in ("page10.png", "page2.png", "cover.jpg", ".hidden.png"):
        Image.new("L", (60, 60), 255).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("scans", ["cover.jpg", "page2.png", "page10.png"]),
        ("scans/", ["cover.jpg", "page2.png", "page10.png"]),
        ("scans/*.png", ["page2.png", "page10.png"]),
        ("scans/page?.png", ["page2.png"]),
        ("scans/p*.png:1", ["page2.png", "page10.png"]),
    ],
)
def test_images_come_in_the_order_of_their_numbers(
    command: Command, fake_chat: FakeChat, scans: Path, source: str, names: list[str]
) -> None:
    result = command("chat", "-p", "hi", "--image", source)
    assert result.exit_code == 0
    assert [Path(name).name for name in fake_chat.questions[0]["images"]] == names
    assert ("left out notes.txt" in result.stderr) == ("*" not in source and "?" not in source)


def test_an_interactive_chat_takes_them_too(command: Command, fake_chat: FakeChat, scans: Path) -> None:
    command("chat", "-i", stdin=b"/image scans/*.png\nhi\n")
    assert len(fake_chat.questions[0]["images"]) == 2


def test_a_file_whose_name_looks_like_a_pattern_is_itself(
    command: Command, fake_chat: FakeChat, scans: Path
) -> None:
    name = (scans / "page2.png").rename(scans / "a[1].png")
    assert command("chat", "-p", "hi", "--image", str(name)).exit_code == 0
    assert fake_chat.questions[0]["images"] == [str(name)]


@pytest.mark.parametrize("source", ["scans/*.bmp", "scans/more.png", "nowhere/*"])
def test_no_image_at_all_is_refused(command: Command, fake_chat: FakeChat, scans: Path, source: str) -> None:
    result = command("chat", "-p", "hi", "--image", source)
    assert result.exit_code == 5
    assert f"{source}: 0 images" in result.stderr


def test_more_images_than_fit_any_context_are_refused_before_they_are_opened(
    command: Command, fake_chat: FakeChat, scans: Path
) -> None:
    for number in range(40):
        (scans / f"{number}.png").touch()
    result = command("chat", "-p", "hi", "--image", "scans")
    assert result.exit_code == 5
    assert "43 images, at most 32" in result.stderr
