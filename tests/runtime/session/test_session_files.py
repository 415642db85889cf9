"""Chats saved to a file and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from ernie_local.errors import (
    InputUnreadable,
    UsageError,
)
from ernie_local.session import Chat, ToolCall
from tests.runtime.conftest import Talk
from tests.special_files import SPECIAL_FILES, within_seconds

if TYPE_CHECKING:
    from tests.runtime.conftest import Talks


def test_a_chat_of_version_1_is_read(talk: Talks, image: Path, tmp_path: Path) -> None:
    turn = {
        "role": "user",
        "text": "what is it?",
        "images": [{"path": str(image), "size": [100, 60]}],
        "thinking": False,
        "reasoning": "",
        "answer": "a page",
        "tool_calls": [],
        "finish_reason": "stop",
    }
    saved = {"format": "ernie-local chat", "version": 1, "system": None, "tools": [], "turns": [turn]}
    (tmp_path / "old.json").write_text(json.dumps(saved))
    (read,) = Chat.load(tmp_path / "old.json", talk().chat.model).history
    assert (read.text, read.answer, [shown.path for shown in read.images]) == (
        "what is it?",
        "a page",
        [str(image)],
    )


def test_save_and_load(talk: Talks, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = talk(variant="thinking", system="Be brief.", tools=[{"name": "zoom"}])
    monkeypatch.chdir(tmp_path)
    one.ask("one", "why\n</think>\n\nfirst", images=["page.png"])
    one.ask("two", 'hm\n</think>\n<tool_call>{"name": "zoom", "arguments": {"n": 1}}</tool_call>')
    one.ask("result", "fine", role="tool", images=[image], thinking=False)
    path = tmp_path / "chat.json"
    one.chat.save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["chat.json", "page.png"]
    monkeypatch.chdir("/")  # the path was relative when it was asked about
    two = Talk(Chat.load(path, one.chat.model, variant="thinking"))
    assert two.chat.system == "Be brief."
    for before, after in zip(one.chat.history, two.chat.history, strict=True):
        assert before.messages() == after.messages()
        assert (before.thinking, before.finish_reason) == (after.thinking, after.finish_reason)
    assert two.chat.history[1].tool_calls == (ToolCall("zoom", {"n": 1}),)
    for each in (one, two):
        each.ask("again", "x</think>y")
    assert two.engine.ids == one.engine.ids
    assert len(two.engine.prefills) == 1
    assert len(two.engine.prefills[0][1]) == 2
    two.chat.save(path)
    assert len(Chat.load(path, one.chat.model, variant="thinking").history) == 4


def test_a_page_of_a_document_is_opened_again(talk: Talks, tmp_path: Path) -> None:
    pages = [Image.new("RGB", (width, 56), "white") for width in (56, 84)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    one = talk()
    answer = one.ask("q", "a", images=[tmp_path / "scan.tif"])
    assert [report.original_size for report in answer.images] == [(56, 56), (84, 56)]
    one.chat.save(tmp_path / "chat.json")
    two = Talk(Chat.load(tmp_path / "chat.json", one.chat.model))
    assert [image.report for image in two.chat.history[0].images] == list(answer.images)


def test_a_image_without_a_path_cannot_be_saved(talk: Talks, image: Path, tmp_path: Path) -> None:
    one = talk()
    one.ask("q", "a", images=[image])
    one.ask("q", "a", images=[image.read_bytes()])
    with pytest.raises(UsageError, match="turn 2 of the chat has an image without a path"):
        one.chat.save(tmp_path / "chat.json")
    assert not (tmp_path / "chat.json").exists()
    # It stays good for the conversation all the same.
    one.chat.undo()
    one.ask("q", "b", images=[Image.open(image)])
    assert len(one.chat.history) == 2


def test_a_image_that_changed_or_went_is_named(talk: Talks, image: Path, tmp_path: Path) -> None:
    one = talk()
    one.ask("q", "a", images=[image])
    path = tmp_path / "chat.json"
    one.chat.save(path)
    Image.new("RGB", (50, 60)).save(image)
    with pytest.raises(
        InputUnreadable, match=r"page\.png: 100 x 60 pixels when it was asked about, 50 x 60 now"
    ):
        Chat.load(path, one.chat.model)
    image.unlink()
    with pytest.raises(InputUnreadable, match=r"page\.png"):
        Chat.load(path, one.chat.model)


@pytest.mark.parametrize("name", ["secret", "pipe", "device", "-", "-:2", "a\0b", "gone", ".", "x" * 9000])
def test_a_saved_chat_names_images_alone_and_shows_no_other_file(
    talk: Talks, image: Path, tmp_path: Path, name: str
) -> None:
    one = talk()
    one.ask("q", "a", images=[image])
    path = tmp_path / "chat.json"
    one.chat.save(path)
    (tmp_path / "secret").write_text("hunter2" * 9)
    for kind in ("pipe", "device"):
        SPECIAL_FILES[kind](tmp_path / kind)
    named = name if name.startswith("-") else str(tmp_path / name)
    path.write_text(path.read_text().replace(json.dumps(str(image)), json.dumps(named)))
    with within_seconds(20), pytest.raises(InputUnreadable) as caught:
        Chat.load(path, one.chat.model)
    assert len(str(caught.value).splitlines()) == 3
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read the chat"),
        ("[]", 'lacks "format"'),
        ('{"format": "ernie-local chat", "version": 5}', "version 5, only 1 to 4 can be read"),
        ('{"format": "ernie-local chat", "version": 1}', "missing or wrong: 'system'"),
        (
            '{"format": "ernie-local chat", "version": 1, "system": 3, "tools": [], "turns": []}',
            "3 where a str",
        ),
        (
            '{"format": "ernie-local chat", "version": 1, "system": null, "tools": [], "turns": [{}]}',
            "missing or wrong",
        ),
    ],
)
def test_a_file_that_is_no_chat(talk: Talks, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(InputUnreadable, match=message):
        Chat.load(path, talk().chat.model)


def test_a_missing_chat_and_a_missing_folder(talk: Talks, tmp_path: Path) -> None:
    one = talk()
    with pytest.raises(InputUnreadable, match="cannot read the chat"):
        Chat.load(tmp_path / "none.json", one.chat.model)
    with pytest.raises(Exception, match="cannot write the chat"):
        one.chat.save(tmp_path / "none" / "chat.json")
