"""Where the question comes from, and who may read stdin."""

from __future__ import annotations

import io

import pytest

from ernie_cli.chat.options import ChatOptions
from ernie_cli.chat.request import read_questions
from ernie_local.errors import InputUnreadable, UsageError


class Stdin(io.TextIOWrapper):
    """A stdin that may claim to be a terminal."""

    def __init__(self, data: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def read(
    prompt: str | None,
    images: list[str],
    stdin: io.TextIOWrapper,
    interactive: bool = False,
    as_json: bool = False,
) -> str | None:
    prompts = () if prompt is None else (prompt,)
    options = ChatOptions(prompts=prompts, images=tuple(images), interactive=interactive, as_json=as_json)
    return next(iter(read_questions(options, stdin)), None)


def test_a_prompt_is_taken_as_it_is_and_stdin_left_alone() -> None:
    stdin = Stdin(b"not for you")
    assert read("What?", ["a.png", "b.pdf:1-3"], stdin) == "What?"
    assert stdin.read() == "not for you"


@pytest.mark.parametrize("prompt", ["-", None])
def test_a_pipe_is_the_question(prompt: str | None) -> None:
    question = read(prompt, [], Stdin("Wie viel?\nGenau, bitte: ü\n".encode()))
    assert question == "Wie viel?\nGenau, bitte: ü"


def test_a_terminal_without_a_prompt_means_a_chat() -> None:
    assert read(None, ["a.png"], Stdin(b"", terminal=True)) is None


def test_interactive_leaves_a_pipe_to_the_chat() -> None:
    stdin = Stdin(b"first line\n")
    assert read(None, [], stdin, interactive=True) is None
    assert stdin.read() == "first line\n"


def test_a_image_from_stdin_is_left_for_the_opener() -> None:
    stdin = Stdin(b"\x89PNG")
    assert read("What?", ["-"], stdin) == "What?"
    assert stdin.buffer.read() == b"\x89PNG"


@pytest.mark.parametrize(
    ("prompt", "images", "interactive", "told"),
    [
        ("-", ["-"], False, "wanted 2 times"),
        ("hi", ["-", "-:2"], False, "wanted 2 times"),
        (None, ["-"], True, "wanted 2 times"),
        ("-", [], True, "wanted 2 times"),
        (None, ["-"], False, "no question"),
    ],
)
def test_stdin_is_read_once(prompt: str | None, images: list[str], interactive: bool, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read(prompt, images, Stdin(b"x"), interactive=interactive)


def test_a_image_cannot_be_typed() -> None:
    with pytest.raises(UsageError, match="terminal"):
        read("What?", ["-"], Stdin(b"", terminal=True))


@pytest.mark.parametrize("data", [b"", b"\n", b"  \r\n"])
def test_an_empty_pipe_is_no_question(data: bytes) -> None:
    with pytest.raises(UsageError, match="empty"):
        read(None, [], Stdin(data))


def test_an_empty_prompt_is_no_question() -> None:
    with pytest.raises(UsageError, match="empty"):
        read(" ", [], Stdin(b""))


def test_a_image_piped_as_the_question_is_told_where_to_go() -> None:
    with pytest.raises(InputUnreadable, match="0x89") as caught:
        read(None, [], Stdin(b"\x89PNG\r\n"))
    assert "--image -" in caught.value.hint


def test_a_prompt_with_broken_bytes_is_refused() -> None:
    with pytest.raises(InputUnreadable, match="character 3 of 4"):
        read("ab\udcffc", [], Stdin(b""))


@pytest.mark.parametrize(("prompt", "interactive"), [(None, False), ("hi", True)])
def test_json_needs_one_question(prompt: str | None, interactive: bool) -> None:
    with pytest.raises(UsageError, match="--json"):
        read(prompt, [], Stdin(b"", terminal=True), interactive=interactive, as_json=True)


def test_closed_stdin_is_an_empty_question() -> None:
    with pytest.raises(UsageError, match="empty"):
        read_questions(ChatOptions(), None)


def test_several_questions_keep_their_order_and_one_may_come_from_stdin() -> None:
    options = ChatOptions(prompts=("one", "-", "three"))
    assert read_questions(options, Stdin(b"two\n")) == ("one", "two", "three")
    with pytest.raises(UsageError, match="wanted 2 times"):
        read_questions(ChatOptions(prompts=("-", "-")), Stdin(b"x"))
    with pytest.raises(UsageError, match="empty"):
        read_questions(ChatOptions(prompts=("one", "")), Stdin(b""))
