"""`chat --zoom`, `--tool` and `--tools`: what is checked before a model is read, asked, shown and written."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from ernie_cli.chat import conversation
from ernie_cli.chat.options import ChatOptions
from ernie_cli.chat.tool_calls import make_tools, show_step, step_lines
from ernie_cli.console import Console
from ernie_local import session
from ernie_local.experts.options import BankStats, PagingStats
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import (
    ChatMessage,
    SavedChat,
    ToolCall,
    ToolContext,
    ToolError,
    ToolStep,
    open_chat_images,
)
from ernie_local.session.image_tools import zoom_tool
from tests.cli.running import Command, FakeChat


@pytest.fixture
def tool_file(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"name": "weather", "description": "Tell.", "command": "cat"}]))
    return path


def console() -> tuple[Console, io.StringIO]:
    stderr = io.StringIO()
    return Console(io.StringIO(), stderr), stderr


def a_keyboard(monkeypatch: pytest.MonkeyPatch) -> io.TextIOWrapper:
    """What is written to it comes from stdin."""
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    return os.fdopen(writer, "w")


def a_step(**changes: Any) -> ToolStep:
    (image,) = open_chat_images([Image.new("RGB", (400, 300), "red")], ImageProcessorConfig())
    part = image.zoomed((0, 0, 500, 500))
    call = ToolCall("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500], "label": "Schilder: \x1b[2J"})
    step = ToolStep(1, call, ChatMessage("tool", (part,)), is_error=False, seconds=0.25, first_image=2)
    return ToolStep(**{name: getattr(step, name) for name in ToolStep.__slots__} | changes)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--tool", "a=cat"), "--tool without a terminal"),
        (("--tools", "FILE"), "--tools without a terminal"),
        (("--tool", "a=cat", "--yes", "--fields", "total"), "--tool with a form of the answer"),
        (("--zoom", "--choice", "a,b"), "--zoom with a form of the answer"),
        (("--yes",), "--yes without a tool"),
        (("--max-rounds", "3"), "--max-rounds without a tool"),
        (("--steps", "steps"), "--steps without a tool"),
        (("--zoom", "--steps", "FILE"), "is no directory"),
        (("--zoom", "--max-rounds", "0"), "0 is not in the range"),
        (("--tool", "a=cat", "--tool", "a=cat", "--yes"), "2 tools are called a"),
        (("--tool", "a=./nothing", "--yes"), "the command of the tool 'a' is not there: './nothing'"),
        (("--tool", "a", "--yes"), "'a' names no tool"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_read(
    command: Command, no_weights: None, tool_file: Path, arguments: tuple[str, ...], what: str
) -> None:
    given = (str(tool_file) if one == "FILE" else one for one in arguments)
    result = command("chat", "nano", "-p", "hi", "--template", "thinking", *given)
    assert result.exit_code == 2
    assert what in result.stderr
    assert len(result.stderr.strip().splitlines()) == 3


def test_a_broken_file_and_a_model_without_tools_are_refused(
    command: Command, no_weights: None, tool_file: Path
) -> None:
    result = command("chat", "nano", "-p", "hi", "--zoom")
    assert (result.exit_code, "for a chat template without tools" in result.stderr) == (2, True)
    tool_file.write_text('[{"name": "a", "command": "cat", "x": 1}]')
    result = command("chat", "-p", "hi", "--yes", "--template", "thinking", "--tools", str(tool_file))
    assert (result.exit_code, "unknown field `x`" in result.stderr) == (5, True)


def test_calls_are_shown_and_are_in_the_object(
    command: Command, fake_chat: FakeChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FakeChat.ask
    steps = (a_step(), a_step(result=ChatMessage("tool", "error: no"), is_error=True, first_image=None))

    def ask(self: Any, *arguments: Any, **settings: Any) -> Any:
        for step in steps:
            self.on_step(step)
        yield from made(self, *arguments, **settings)
        object.__setattr__(self.last, "steps", steps)

    monkeypatch.setattr(FakeChat, "ask", ask)
    directory = tmp_path / "steps"
    asked = ("chat", "-p", "hi", "--zoom", "--steps", str(directory))
    result = command(*asked, "--stats")
    assert result.stdout == "forty-two\n"
    shown = "picture 2: image [0, 0, 200, 150], 200x150 -> 196x140, 35 tokens (0.25 s)"
    assert f'{{"bbox_2d": [0, 0, 500, 500], "label": "Schilder: \\u001b[2J"}} -> {shown}' in result.stderr
    assert "warning: image_zoom_in_tool" in result.stderr
    assert "round 1: image_zoom_in_tool, image_zoom_in_tool in 0.50 s, 35 tokens of images" in result.stderr
    with Image.open(directory / "picture-2.png") as written:
        assert (written.size, written.getpixel((0, 0))) == ((200, 150), (255, 0, 0))
    first, second = command(*asked, "--json").json()["steps"]
    assert first["images"] == [
        {
            "number": 2,
            "name": "image [0, 0, 200, 150]",
            "box": [0, 0, 200, 150],
            "size": [200, 150],
            "resized": [196, 140],
            "tokens": 35,
        }
    ]
    assert (first["name"], first["round"], first["arguments"]["bbox_2d"]) == (
        "image_zoom_in_tool",
        1,
        [0, 0, 500, 500],
    )
    assert (second["is_error"], second["text"], second["images"]) == (True, "error: no", [])


def test_the_figures_name_what_the_vision_experts_cost() -> None:
    vision = BankStats(prompt_hits=30, prompt_misses=12, bytes_read=3 << 20)
    paging = PagingStats(banks={"text": BankStats(), "vision": vision})
    answer: Any = SimpleNamespace(steps=(a_step(paging=paging),))
    (line,) = step_lines(answer)
    assert line.endswith("35 tokens of images; vision experts: 12 of 42 pages read, 3.0 MiB")


@pytest.mark.parametrize(
    ("typed", "is_run"), [("y\n", True), ("Yes\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_a_program_is_run_where_the_person_agrees(
    monkeypatch: pytest.MonkeyPatch, tool_file: Path, typed: str, is_run: bool
) -> None:
    keyboard = a_keyboard(monkeypatch)
    keyboard.write(typed)
    keyboard.close()
    shown, stderr = console()
    (tool,) = make_tools(ChatOptions(tool_files=(tool_file,)), shown)
    context = ToolContext((), (), ImageProcessorConfig(), 100, lambda: False)
    if is_run:
        value = cast("dict[str, Any]", tool.run({"city": "Z\x1b[2J"}, context))
        assert value["arguments"] == {"city": "Z\x1b[2J"}
    else:
        with pytest.raises(ToolError, match="the user did not allow this call"):
            tool.run({"city": "Z" * 5000 + "end"}, context)
        assert "Zend" in stderr.getvalue()  # to the end: nothing is hidden
    assert "the model calls weather" in stderr.getvalue()
    assert "run cat? [y/N]" in stderr.getvalue()
    assert "\x1b" not in stderr.getvalue()


def test_ctrl_c_ends_the_question_whether_to_run(monkeypatch: pytest.MonkeyPatch, tool_file: Path) -> None:
    keyboard = a_keyboard(monkeypatch)
    (tool,) = make_tools(ChatOptions(tool_files=(tool_file,)), console()[0])
    with pytest.raises(ToolError, match="the answer was stopped"):
        tool.run({}, ToolContext((), (), ImageProcessorConfig(), 100, lambda: True))
    keyboard.close()


def test_without_questions_programs_run_at_once(tool_file: Path) -> None:
    weather, zoom = make_tools(ChatOptions(tool_files=(tool_file,), yes=True, zoom=True), console()[0])
    context = ToolContext((), (), ImageProcessorConfig(), 100, lambda: False)
    assert cast("dict[str, Any]", weather.run({}, context))["name"] == "weather"
    assert zoom.name == "image_zoom_in_tool"


def test_new_and_continued_chats_get_the_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class NotedChat:
        """Notes what it is made with."""

        def __init__(self, _model: Any, _system: Any, _sampling: Any, **settings: Any) -> None:
            made.append(settings)

        @classmethod
        def resume(cls, saved: SavedChat, _model: Any, _sampling: Any, **settings: Any) -> None:
            made.append({"tools": saved.tools, **settings})

    monkeypatch.setattr(conversation, "load_for_chat", lambda *_: SimpleNamespace())
    monkeypatch.setattr(session, "Chat", NotedChat)
    zoomed = SavedChat(None, (zoom_tool().described(),), ())
    monkeypatch.setattr(session, "read_saved_chat", lambda *_: zoomed)
    files: Any = SimpleNamespace(generation_config={})
    for load in (None, Path("chat.json")):
        options = ChatOptions(zoom=True, max_rounds=2, load=load)
        tools = make_tools(options, console()[0])
        conversation.open_chat(options, files, console()[0], [], tools)
        assert [tool.name for tool in made[-1]["tools"]] == ["image_zoom_in_tool"]
        assert made[-1]["max_rounds"] == 2


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    from ernie_local.errors import ErnieLocalError

    options = ChatOptions(zoom=True, steps=tmp_path / "missing" / "steps")
    with pytest.raises(ErnieLocalError, match=r"picture-2\.png cannot be written"):
        show_step(options, console()[0], a_step())
