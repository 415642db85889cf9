"""The chat line by line: questions, commands, and what an error leaves behind."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_cli.chat.completion import make_completer
from ernie_cli.chat.interactive import COMMANDS
from ernie_cli.chat.line_reader import open_history, read_message
from ernie_cli.console import Console
from ernie_local import session
from ernie_local.errors import DoesNotFit
from tests.cli.running import Command, FakeChat

Talk = Callable[..., Any]


@pytest.fixture
def talk(command: Command, fake_chat: FakeChat) -> Talk:
    """Runs a chat on lines of text."""

    def invoke(*lines: str, options: tuple[str, ...] = ()) -> Any:
        return command("chat", "-i", *options, stdin="".join(f"{line}\n" for line in lines).encode())

    return invoke


def test_questions_are_answered_one_after_the_other(talk: Talk, fake_chat: FakeChat) -> None:
    result = talk("one", "", "two")
    assert (result.exit_code, result.stdout) == (0, "forty-two\nforty-two\n")
    assert [question["text"] for question in fake_chat.questions] == ["one", "two"]


def test_prompt_and_image_flags_begin_the_chat(talk: Talk, fake_chat: FakeChat, invoice: Path) -> None:
    talk("two", options=("-p", "one", "--image", str(invoice)))
    assert [(question["text"], question["images"]) for question in fake_chat.questions] == [
        ("one", [str(invoice)]),
        ("two", []),
    ]


def test_exit_leaves(talk: Talk, fake_chat: FakeChat) -> None:
    assert talk("/exit", "never").exit_code == 0
    assert fake_chat.questions == []


def test_a_image_waits_for_the_next_question_only(talk: Talk, fake_chat: FakeChat, invoice: Path) -> None:
    result = talk(f"/image {invoice}", "/image", "what is it?", "and now?")
    assert f"{invoice} 2480x3508 -> 1848x2604, 6138 tokens (0.74x)" in result.stderr
    assert f"waiting for the next question: {invoice}" in result.stderr
    assert [question["images"] for question in fake_chat.questions] == [[str(invoice)], []]


def test_image_paths_may_have_blanks_or_be_several(talk: Talk, fake_chat: FakeChat, invoice: Path) -> None:
    spaced = invoice.rename(invoice.with_name("my invoice.png"))
    other = invoice.with_name("b.png")
    other.write_bytes(spaced.read_bytes())
    talk(f"/image {spaced}", f"/image {other} '{spaced}:1'", "q")
    assert [Path(name).name for name in fake_chat.questions[0]["images"]][:2] == ["my invoice.png", "b.png"]


def test_waiting_images_can_be_dropped(talk: Talk, fake_chat: FakeChat, invoice: Path) -> None:
    assert "next question: none" in talk(f"/image {invoice}", "/image clear", "q").stderr
    assert fake_chat.questions[0]["images"] == []


def test_a_bad_image_is_told_and_the_chat_goes_on(talk: Talk, fake_chat: FakeChat) -> None:
    result = talk("/image missing.png", "q")
    assert result.exit_code == 0
    assert "missing.png: no such file" in result.stderr
    assert result.stdout == "forty-two\n"


def test_images_keep_waiting_when_the_question_failed(talk: Talk, fake_chat: FakeChat, invoice: Path) -> None:
    fake_chat.error = DoesNotFit("9000 tokens, 4096 there", "too long", "/undo")
    result = talk(f"/image {invoice}", "q", "/image")
    assert "error: 9000 tokens, 4096 there\ntoo long\ntry: /undo\n" in result.stderr
    assert f"next question: {invoice}" in result.stderr


def test_think_changes_the_next_questions(talk: Talk, fake_chat: FakeChat) -> None:
    result = talk("a", "/think on", "b", "/think off", "c", "/think auto", "d", "/think", "/think hard")
    assert [question["thinking"] for question in fake_chat.questions] == [None, True, False, None]
    assert "thinking: auto" in result.stderr
    assert "/think hard has no meaning" in result.stderr


def test_stats_of_the_last_answer_and_of_each(talk: Talk) -> None:
    assert "no answer yet" in talk("/stats").stderr
    assert talk("a", "b", "/stats").stderr.count("prompt 20 tokens") == 1
    assert talk("/stats on", "a", "b", "/stats off", "c").stderr.count("prompt 20 tokens") == 2
    assert talk("a", "b", options=("--stats",)).stderr.count("prompt 20 tokens") == 2


def test_undo_and_save(talk: Talk, fake_chat: FakeChat, tmp_path: Path) -> None:
    target = tmp_path / "a chat.json"
    result = talk("a", "/undo", f"/save {target}", "/save", f"/save {tmp_path / 'no' / 'where'}")
    assert fake_chat.calls == ["undo", f"save {target}"]
    assert f"chat saved as {target}" in result.stderr
    assert "/save takes 1 path, not 0" in result.stderr
    assert "cannot save a chat" in result.stderr


def test_save_flag_saves_when_leaving(talk: Talk, fake_chat: FakeChat, tmp_path: Path) -> None:
    talk("a", options=("--save", str(tmp_path / "chat.json")))
    assert fake_chat.calls == [f"save {tmp_path / 'chat.json'}"]


def test_load_and_system_change_the_chat(
    talk: Talk, fake_chat: FakeChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    passwords: list[object] = []

    def remember(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        passwords.append(options.get("password"))
        return fake_chat

    class RememberedChat:
        load = staticmethod(remember)

        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            return remember(*arguments)

    monkeypatch.setattr(session, "Chat", RememberedChat)
    talk("/load chat.json", "/system Be brief.", "/system", options=("--password", "swordfish"))
    assert (opened[0][0], opened[1][1]) == (Path("chat.json"), "Be brief.")
    assert passwords[0] == "swordfish"


def test_help_names_every_command(talk: Talk) -> None:
    stderr = talk("/help").stderr
    assert all(f"\n{name}" in f"\n{stderr}" for name in COMMANDS)
    required = {"/image", "/think", "/stats", "/undo", "/save", "/load", "/help", "/exit", "/system"}
    assert required | {"/video", "/retry", "/clear", "/draw"} == set(COMMANDS)


def test_an_unknown_command_is_explained_and_not_asked(talk: Talk, fake_chat: FakeChat) -> None:
    result = talk("/home/me/x.png what is it?", "//", " /slash first")
    assert "unknown command /home/me/x.png; /help lists them" in result.stderr
    assert [question["text"] for question in fake_chat.questions] == ["/slash first"]


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(talk: Talk, fake_chat: FakeChat) -> None:
    presses = [lambda: os.kill(os.getpid(), signal.SIGINT)]
    fake_chat.between = lambda: presses.pop()() if presses else None
    result = talk("a", "b")
    assert (result.exit_code, result.stdout) == (0, "forty\nforty-two\n")
    assert "stopped; this turn is kept" in result.stderr


def test_three_quotes_make_one_message_of_several_lines(talk: Talk, fake_chat: FakeChat) -> None:
    talk('"""first', "  second", 'third"""', '"""one"""', '"""', "x", '"""')
    assert [question["text"] for question in fake_chat.questions] == ["first\n  second\nthird", "one", "x"]


class Interrupting:
    """A keyboard: Ctrl-C, a line, Ctrl-C inside a block, the end."""

    def __init__(self) -> None:
        self.lines: list[str | BaseException] = [KeyboardInterrupt(), "a", '"""b', KeyboardInterrupt()]

    def read(self, prompt: str) -> str:
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


def test_ctrl_c_at_the_prompt_does_not_leave(
    talk: Talk, fake_chat: FakeChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_cli.chat.interactive.make_reader", lambda *names: Interrupting().read)
    result = talk()
    assert result.exit_code == 0
    assert result.stderr.count("Ctrl-D or /exit leaves") == 2
    assert [question["text"] for question in fake_chat.questions] == ["a"]


def test_a_block_that_never_ends_is_the_end() -> None:
    reader = Interrupting()
    reader.lines = ['"""a']
    with pytest.raises(EOFError):
        read_message(reader.read)


def test_tab_completes_commands_and_paths(tmp_path: Path) -> None:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    for name in ("invoice.png", "my scan.png", "it's.png"):
        (tmp_path / name).touch()
    (tmp_path / "my folder").mkdir()
    completer = make_completer({name: command.arguments for name, command in COMMANDS.items()})

    def complete(text: str) -> list[str]:
        found = completer.get_completions(Document(text), CompleteEvent(completion_requested=True))
        return [text[: len(text) + one.start_position] + one.text for one in found]

    assert complete("/s") == ["/system", "/stats", "/save"]
    assert complete(f"/image {tmp_path}/in") == [f"/image {tmp_path}/invoice.png"]
    assert complete(f"/think {tmp_path}/in") == []
    assert complete("s") == []
    (tmp_path / "a clip.mp4").touch()
    assert complete(f"/video b.mp4@0:01- {tmp_path}/a") == [f"/video b.mp4@0:01- '{tmp_path}/a clip.mp4'"]
    assert complete(f"/video {tmp_path}/in") == [f"/video {tmp_path}/invoice.png"]
    assert complete("/think o") == ["/think on", "/think off"]
    assert complete(f"/save {tmp_path}/in") == [f"/save {tmp_path}/invoice.png"]
    assert complete(f"/image {tmp_path}/my s") == [f"/image '{tmp_path}/my scan.png'"]
    assert complete(f"/load {tmp_path}/my s") == [f"/load {tmp_path}/my scan.png"]
    assert complete(f"/image '{tmp_path}/my ") == [
        f"/image '{tmp_path}/my folder/",
        f"/image '{tmp_path}/my scan.png'",
    ]
    assert complete(f"/image a.png {tmp_path}/in") == [f"/image a.png {tmp_path}/invoice.png"]
    assert complete(f"/image 'a b.png' \"{tmp_path}/my s") == [f"/image 'a b.png' \"{tmp_path}/my scan.png\""]
    assert complete(f"/image a.png {tmp_path}/it") == [f'/image a.png "{tmp_path}/it\'s.png"']


def test_retry_asks_the_last_question_again(talk: Talk, fake_chat: FakeChat, invoice: Path) -> None:
    assert "nothing to ask again" in talk("/retry").stderr
    talk("one", f"/image {invoice}", "two", "/retry", "/retry")
    assert [(question["text"], question["images"]) for question in fake_chat.questions] == [
        ("one", []),
        *[("two", [str(invoice)])] * 3,
    ]
    assert [turn.text for turn in fake_chat.history] == ["one", "two"]


def test_a_question_that_failed_is_asked_again(talk: Talk, fake_chat: FakeChat, invoice: Path) -> None:
    fake_chat.error = DoesNotFit("9000 tokens, 4096 there", "too long", "/undo")
    talk("one", f"/image {invoice}", "/retry", "/undo")
    assert [question["text"] for question in fake_chat.questions] == ["one", "one"]
    assert fake_chat.questions[1]["images"] == []


def test_clear_begins_a_new_chat(
    talk: Talk, fake_chat: FakeChat, invoice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "Chat", lambda model, system, *_, **__: FakeChat(system=system))
    fake_chat.system = "Be brief."
    result = talk("one", f"/image {invoice}", "/clear", "/image", "/system", "/retry")
    assert "next question: none" in result.stderr
    assert "system: Be brief." in result.stderr
    assert "nothing to ask again" in result.stderr


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("arguments", [("-i",), ("-p", "one")])
def test_the_chat_is_saved_when_it_is_terminated(
    command: Command,
    fake_chat: FakeChat,
    tmp_path: Path,
    arguments: tuple[str, ...],
    signal_number: signal.Signals,
) -> None:
    fake_chat.between = lambda: os.kill(os.getpid(), signal_number)
    path = tmp_path / "chat.json"
    result = command("chat", *arguments, "--save", str(path), stdin=b"one\n")
    assert result.exit_code == 75
    assert fake_chat.calls == [f"save {path}"]
    assert f"--load {path}" in result.stderr
    assert result.stdout.startswith("forty")


def test_typed_lines_last_for_their_owner_alone(tmp_path: Path) -> None:
    told = io.StringIO()
    console = Console(io.StringIO(), told)
    path = tmp_path / "state" / "history"
    history = open_history(path, console)
    assert history is not None
    history.append_string("one\nof two lines")
    assert path.stat().st_mode & 0o777 == 0o600
    again = open_history(path, console)
    assert again is not None
    assert list(again.load_history_strings()) == ["one\nof two lines"]
    assert told.getvalue() == ""
    path.unlink()
    path.mkdir()
    assert open_history(path, console) is None
    assert str(path) in told.getvalue()
