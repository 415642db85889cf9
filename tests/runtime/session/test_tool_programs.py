"""Programs as tools: what they get and give, their limits, and that nothing of them is left behind."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import ToolContext, ToolError, open_chat_images
from ernie_local.session.image_tools import SEARCH_PARAMETERS
from ernie_local.session.tool_programs import parse_tool_option, read_tool_file

if TYPE_CHECKING:
    from tests.runtime.conftest import Talks

STUCK = "sleep 300"


def context(images: tuple[Any, ...] = (), should_stop: Callable[[], bool] = lambda: False) -> ToolContext:
    return ToolContext(images, images, ImageProcessorConfig(), 1000, should_stop)


def run(command: str, where: ToolContext | None = None, **arguments: object) -> object:
    return parse_tool_option(f"tool={command}").tool.run(arguments, where or context())


def shell(script: str) -> str:
    return shlex.join(["sh", "-c", script])


def file_of(tmp_path: Path, *entries: dict[str, object]) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(entries))
    return path


def test_a_program_gets_its_call_as_json_and_gives_json(image: Path) -> None:
    images = tuple(open_chat_images([image, Image.new("RGB", (60, 60))], ImageProcessorConfig()))
    assert run("cat", context(images), city="Zürich", days=[1]) == {
        "name": "tool",
        "arguments": {"city": "Zürich", "days": [1]},
        "images": [str(image), None],
    }
    assert run(shell("echo '\"text\"'")) == "text"
    # One that does not read what it gets is not waited for.
    assert run("echo 7", text="x" * 1_000_000) == 7


def test_a_program_gives_the_path_of_an_image(talk: Talks, image: Path) -> None:
    assert run(f"echo {image}") == image
    one = talk(variant="thinking", tools=[parse_tool_option(f"draw=echo {image}").tool])
    one.engine.say('</think>\n\n<tool_call>{"name": "draw"}</tool_call>', "</think>\n\nwhite")
    list(one.chat.ask("Draw."))
    assert one.chat.last is not None
    (step,) = one.chat.last.steps
    assert [each.path for each in step.result.images] == [str(image)]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (shell("echo no such town >&2; exit 3"), "sh ended with code 3: no such town"),
        (shell("exit 3"), "sh ended with code 3: it says nothing"),
        (shell("kill -9 $$"), "sh ended with code -9"),
        (shell("head -c 3000000 /dev/zero >&2; echo end >&2; exit 1"), "sh ended with code 1: "),
        ("echo hello", "what it wrote is neither JSON nor the path of an image: 'hello'"),
        ("true", "what it wrote is neither JSON nor the path of an image: ''"),
        ("echo /", "what it wrote is neither JSON nor the path of an image: '/'"),
        ("echo $HOME; ls", r"neither JSON nor the path of an image: '$HOME; ls'"),
        (shell("head -c 100000 /dev/zero | tr '\\0' '['"), "neither JSON"),
        ("head -c 1000000000 /dev/zero", "it wrote more than 1048576 bytes and was ended"),
    ],
)
def test_what_goes_wrong_is_an_error_for_the_model(command: str, error: str) -> None:
    with pytest.raises(ToolError) as raised:
        run(command)
    assert error in str(raised.value)
    assert len(str(raised.value)) < 1000


def is_running(pid_file: Path) -> bool:
    """Whether the process whose number is in the file lives, waited for a little."""
    pid = int(pid_file.read_text())
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    command = shell(f"{STUCK} & echo $! > {pids}; {STUCK}")
    (program,) = read_tool_file(file_of(tmp_path, {"name": "a", "command": command, "seconds": 0.5}))
    with pytest.raises(ToolError, match=r"sh took more than 0\.5 seconds and was ended"):
        program.tool.run({}, context())
    assert not is_running(pids)


def test_what_a_program_leaves_behind_is_ended_and_not_waited_for(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    assert run(shell(f"{STUCK} & echo $! > {pids}; echo 1")) == 1
    assert not is_running(pids)


def test_a_stop_ends_a_program(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    with pytest.raises(ToolError, match="the answer was stopped"):
        run(shell(f"echo $$ > {pids}; {STUCK}"), context(should_stop=pids.exists))
    assert not is_running(pids)


def test_a_file_of_tools(tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    mark = tmp_path / "mark"
    path = file_of(
        tmp_path,
        {"name": "a", "description": "Count.", "parameters": parameters, "command": f"touch {mark}"},
        {"name": "b", "command": ["echo", "1 "]},
    )
    first, second = (program.tool for program in read_tool_file(path))
    assert (first.description, first.parameters) == ("Count.", parameters)
    assert second.run({"anything": 1}, context()) == 1
    with pytest.raises(ToolError, match=r"\$\.n: '1' is not of type 'integer'"):
        first.run({"n": "1"}, context())
    assert not mark.exists()


def test_published_tools_have_their_published_schema() -> None:
    tool = parse_tool_option("image_search=cat").tool
    assert (tool.description, tool.parameters) == ("search for similar images", SEARCH_PARAMETERS)
    assert parse_tool_option("other=cat").tool.parameters == {"type": "object"}


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"name": "a", "command": "cat", "comand": 1}, "unknown field `comand` - at `$[0]`"),
        ({"name": "a"}, "missing required field `command`"),
        ({"name": "a", "command": 7}, "at `$[0].command`"),
        ({"name": "a", "command": "cat", "seconds": 0}, "at `$[0].seconds`"),
        ({"name": "a b", "command": "cat"}, "a tool cannot be called 'a b'"),
        ({"name": "a", "command": "./nothing-here --x"}, "'a' is not there: './nothing-here'"),
        ({"name": "a", "command": ""}, "'a' is not there: ''"),
        ({"name": "a", "command": "cat 'x"}, "cannot be split No closing quotation"),
        ({"name": "a", "command": "cat", "parameters": {"type": "objekt"}}, "are no JSON schema $.type"),
        ({"name": "a", "command": "cat", "parameters": {"$ref": "http://h/x"}}, "$ref leads to 'http://h/x'"),
    ],
)
def test_bad_entries_are_refused(tmp_path: Path, entry: dict[str, object], error: str) -> None:
    with pytest.raises((UsageError, InputUnreadable)) as raised:
        read_tool_file(file_of(tmp_path, entry))
    assert error in f"{raised.value.what} {raised.value.why}"


@pytest.mark.parametrize("content", [None, "", "{}", "[" * 100_000, "[1]"])
def test_bad_files_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputUnreadable, match=f"the tools in {path} cannot be read"):
        read_tool_file(path)


def test_an_option_without_a_command_is_refused() -> None:
    with pytest.raises(UsageError, match="'weather' names no tool"):
        parse_tool_option("weather")
    with pytest.raises(UsageError, match="a tool cannot be called ''"):
        parse_tool_option("=cat")
