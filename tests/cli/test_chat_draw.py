"""`chat --draw` and the boxes in `--json`: what is drawn, told, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ernie_local.text.reasoning import Piece
from tests.cli.running import Command, FakeChat

POINTING = (Piece("answer", '{"bbox_2d": [100, 200, 300, 400], "label": "total"}'),)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    Image.new("RGB", (400, 300), "white").save(path)
    return path


def test_boxes_are_drawn_told_and_in_the_object(
    command: Command, fake_chat: FakeChat, page: Path, tmp_path: Path
) -> None:
    fake_chat.pieces = POINTING
    out = tmp_path / "boxes.png"
    ask = ("chat", "-p", "Where is the total?", "--image", str(page), "--draw", str(out))
    result = command(*ask)
    assert result.exit_code == 0
    assert f"box 1 total: {page} [40, 60, 120, 120]" in result.stderr
    assert f"drawn: {out}" in result.stderr
    with Image.open(out) as drawn, Image.open(page) as original:
        assert drawn.size == original.size
        assert drawn.tobytes() != original.tobytes()
    fake_chat.history = ()
    value = command(*ask, "--json").json()
    assert value["drawings"] == [str(out)]
    assert value["boxes"] == [
        {
            "label": "total",
            "image": 1,
            "name": str(page),
            "box": [40, 60, 120, 120],
            "thousandths": [100, 200, 300, 400],
        }
    ]


def test_the_boxes_of_all_questions_are_drawn_together(
    command: Command, fake_chat: FakeChat, page: Path, tmp_path: Path
) -> None:
    fake_chat.pieces = POINTING
    out = tmp_path / "boxes.png"
    result = command("chat", "-p", "a", "-p", "b", "--image", str(page), "--draw", str(out))
    assert f"box 1 total: {page} [40, 60, 120, 120]" in result.stderr
    assert f"box 2 total: {page} [40, 60, 120, 120]" in result.stderr
    fake_chat.history = ()
    value = command("chat", "-p", "a", "-p", "b", "--image", str(page), "--json").json()
    assert [len(value["boxes"]), len(value["earlier"][0]["boxes"])] == [1, 1]


def test_no_box_no_drawing(command: Command, fake_chat: FakeChat, page: Path, tmp_path: Path) -> None:
    fake_chat.pieces = (Piece("answer", '{"bbox_2d": [1, 2, 3], "label": "to\\u001btal"}'),)
    out = tmp_path / "boxes.png"
    result = command("chat", "-p", "Where?", "--image", str(page), "--draw", str(out))
    assert (result.exit_code, out.exists()) == (0, False)
    assert "to\\x1btal: [1, 2, 3] has 3 numbers, a box has 4" in result.stderr
    assert "nothing is drawn: the answer names no place in 1 images" in result.stderr
    value = command("chat", "-p", "Where?", "--image", str(page), "--json").json()
    assert value["box_notes"] == ["to\x1btal: [1, 2, 3] has 3 numbers, a box has 4"]


@pytest.mark.parametrize(
    ("draw", "more", "told"),
    [
        ("page.png", ("-p", "hi"), "will not draw over"),
        ("boxes.jpg", ("-p", "hi"), "drawings are PNG files"),
        ("notes.png", ("-p", "hi"), "will not write a drawing over"),
        ("no/boxes.png", ("-p", "hi"), "is not a directory"),
        ("boxes.png", ("--interactive",), "--draw without a question"),
    ],
)
def test_drawings_that_are_refused_before_the_model_is_loaded(
    command: Command,
    fake_chat: FakeChat,
    page: Path,
    tmp_path: Path,
    draw: str,
    more: tuple[str, ...],
    told: str,
) -> None:
    (tmp_path / "notes.png").write_text("my notes")
    before = page.read_bytes()
    result = command("chat", *more, "--image", str(page), "--draw", str(tmp_path / draw))
    assert result.exit_code == 2
    assert told in result.stderr
    assert fake_chat.questions == []
    assert page.read_bytes() == before


def test_a_chat_draws_its_last_answer(
    command: Command, fake_chat: FakeChat, page: Path, tmp_path: Path
) -> None:
    fake_chat.pieces = POINTING
    out = tmp_path / "two words.png"
    lines = f"/draw {out}\nWhere?\n/draw {out}\n/draw {page}\n/draw\n"
    result = command("chat", "--interactive", "--image", str(page), stdin=lines.encode())
    assert result.exit_code == 0
    assert "nothing is drawn: the answer names no place in 0 images" in result.stderr
    assert f"drawn: {out}" in result.stderr
    assert out.exists()
    assert "will not draw over" in result.stderr
    assert "/draw takes 1 path, not 0" in result.stderr
