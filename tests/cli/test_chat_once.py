"""`chat` with one question: what goes to stdout, what to stderr, and how it ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from ernie_local.errors import DoesNotFit
from ernie_local.text.reasoning import Piece
from tests.cli.running import Command, FakeChat
from tests.pdf_files import encrypted_red_page

THOUGHTFUL = (Piece("reasoning", "six "), Piece("reasoning", "sevens"), Piece("answer", "42"))


def test_stdout_carries_only_the_answer(command: Command, fake_chat: FakeChat, invoice: Path) -> None:
    result = command("chat", "-p", "How much?", "--image", str(invoice), "--stats")
    assert (result.exit_code, result.stdout) == (0, "forty-two\n")
    assert f"{invoice} 2480x3508 -> 1848x2604, 6138 tokens (0.74x)" in result.stderr
    assert "prompt 20 tokens (9 of images) in 0.30 s" in result.stderr
    assert "peak memory 3.00 GiB" in result.stderr
    assert fake_chat.questions[0]["images"] == [str(invoice)]


def test_an_encrypted_pdf_opens_with_a_password_that_is_not_shown(
    command: Command, fake_chat: FakeChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "locked.pdf"
    path.write_bytes(encrypted_red_page("swordfish"))
    ask = ("chat", "-p", "hi", "--image", str(path))
    for flags in ((), ("--json", "--debug")):
        result = command(*ask, "--password", "swordfish", *flags)
        assert result.exit_code == 0
        assert "swordfish" not in result.stdout + result.stderr
    assert fake_chat.questions[0]["images"] == [str(path)]
    wrong: list[tuple[str, ...]] = [(), ("--password", "trout"), ("--password", "trout", "--json", "--debug")]
    for more in wrong:
        result = command(*ask, *more)
        assert result.exit_code == 5
        assert "try: --password PASSWORD" in result.stderr
        assert "trout" not in result.stdout + result.stderr
    monkeypatch.setenv("ERNIE_LOCAL_PASSWORD", "swordfish")
    assert command(*ask).exit_code == 0
    assert command("chat", "--interactive", "-p", "hi", stdin=f"/image {path}\n".encode()).exit_code == 0
    assert command(*ask, "--password", "trout").exit_code == 5


def test_no_figures_unless_asked_for(command: Command, fake_chat: FakeChat) -> None:
    assert command("chat", "-p", "hi").stderr == ""


def test_flags_reach_the_chat(command: Command, fake_chat: FakeChat) -> None:
    assert (
        command("chat", "-p", "hi", "--think", "on", "--think-budget", "2k", "--max-tokens", "4k").exit_code
        == 0
    )
    expected = {"thinking": True, "thinking_budget": 2048, "max_tokens": 4096, "schema": None}
    assert fake_chat.questions == [{"text": "hi", "images": [], **expected}]
    command("chat", "-p", "hi", "--think", "off")
    command("chat", "-p", "hi", "--think-budget", "0")
    assert [question["thinking"] for question in fake_chat.questions] == [True, False, None]
    assert fake_chat.questions[2]["thinking_budget"] == 0


def test_thoughts_go_to_stderr_and_can_be_hidden(command: Command, fake_chat: FakeChat) -> None:
    fake_chat.pieces = THOUGHTFUL
    result = command("chat", "-p", "hi")
    assert (result.stdout, result.stderr) == ("42\n", "six sevens\n")
    result = command("chat", "-p", "hi", "--hide-thinking")
    assert (result.stdout, result.stderr) == ("42\n", "")


def test_no_stream_prints_the_same(command: Command, fake_chat: FakeChat) -> None:
    assert command("chat", "-p", "hi", "--no-stream").stdout == "forty-two\n"


def test_question_and_image_from_stdin(command: Command, fake_chat: FakeChat, invoice: Path) -> None:
    assert command("chat", stdin=b"How much?\n").exit_code == 0
    assert command("chat", "-p", "-", stdin=b"How many?\n").exit_code == 0
    result = command("chat", "-p", "What?", "--image", "-", stdin=invoice.read_bytes())
    assert result.exit_code == 0
    assert "2480x3508 -> 1848x2604" in result.stderr
    assert [question["text"] for question in fake_chat.questions] == ["How much?", "How many?", "What?"]


def test_a_image_that_loses_most_of_itself_is_warned_about(
    command: Command, fake_chat: FakeChat, tmp_path: Path
) -> None:
    Image.new("1", (6000, 6000)).save(tmp_path / "plan.png")
    stderr = command("chat", "-p", "hi", "--image", str(tmp_path / "plan.png")).stderr
    assert "(0.36x)" in stderr
    assert "keeps 36% of its side length" in stderr


def test_no_answer_is_seven(command: Command, fake_chat: FakeChat) -> None:
    fake_chat.pieces, fake_chat.finish_reason = THOUGHTFUL[:2], "length"
    result = command("chat", "-p", "hi")
    assert (result.exit_code, result.stdout) == (7, "")
    assert "--think-budget" in result.stderr
    value = command("chat", "-p", "hi", "--json").json()
    assert (value["ok"], value["text"], value["reasoning"]) == (False, "", "six sevens")
    assert value["finish_reason"] == "length"
    assert value["error"]["code"] == "no_answer"


def test_an_answer_that_was_cut_off_says_so(command: Command, fake_chat: FakeChat) -> None:
    fake_chat.finish_reason = "length"
    result = command("chat", "-p", "hi")
    assert (result.exit_code, result.stdout) == (0, "forty-two\n")
    assert "cut off after 2 tokens" in result.stderr


def test_ctrl_c_ends_the_answer_with_130_and_keeps_what_was_said(
    command: Command, fake_chat: FakeChat
) -> None:
    fake_chat.between = lambda: os.kill(os.getpid(), signal.SIGINT)
    result = command("chat", "-p", "hi")
    assert (result.exit_code, result.stdout) == (130, "forty\n")
    value = command("chat", "-p", "hi", "--json").json()
    assert (value["text"], value["error"]["code"]) == ("forty", "interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(command: Command, fake_chat: FakeChat) -> None:
    def press_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    fake_chat.between = press_twice
    assert command("chat", "-p", "hi").exit_code == 130


def test_the_chat_is_saved_at_the_end(command: Command, fake_chat: FakeChat, tmp_path: Path) -> None:
    target = tmp_path / "chat.json"
    assert command("chat", "-p", "hi", "--save", str(target)).exit_code == 0
    assert fake_chat.calls == [f"save {target}"]


def test_several_questions_are_turns_of_one_chat(
    command: Command, fake_chat: FakeChat, invoice: Path, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    arguments = ("chat", "-p", "one", "-p", "two", "--image", str(invoice), "--save", str(path))
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (0, "forty-two\nforty-two\n")
    assert [(question["text"], question["images"]) for question in fake_chat.questions] == [
        ("one", [str(invoice)]),
        ("two", []),
    ]
    assert fake_chat.calls == [f"save {path}"]
    value = command(*arguments, "--json").json()
    assert value["text"] == "forty-two"
    assert [answer["text"] for answer in value["earlier"]] == ["forty-two"]
    assert value["earlier"][0]["usage"] == value["usage"]


def test_what_was_said_before_an_error_is_told_and_saved(
    command: Command, fake_chat: FakeChat, tmp_path: Path
) -> None:
    def fail_next() -> None:
        fake_chat.error = DoesNotFit("9000 tokens, 4096 there", "too long", "fewer questions")

    fake_chat.between = fail_next
    path = tmp_path / "chat.json"
    result = command("chat", "-p", "one", "-p", "two", "--save", str(path), "--json")
    assert result.exit_code == 3
    assert (result.json()["text"], result.json()["earlier"][0]["text"]) == (None, "forty-two")
    assert fake_chat.calls == [f"save {path}"]
