"""The line that says what a command does now: drawn on terminals, erased before all else, nowhere else."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from ernie_cli.console import Console
from ernie_cli.progress import UnitProgress
from ernie_cli.status import StatusLine
from tests.cli.test_console import Terminal

ERASE = "\r\x1b[K"


@pytest.fixture(autouse=True)
def any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def wait_for(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def screen(text: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    return [line.rpartition(ERASE)[2] for line in text.split("\n")]


def test_what_goes_on_beside_is_asked_whenever_the_line_is_drawn() -> None:
    line = StatusLine(Terminal(), is_shown=True)
    line.show("reading the prompt")
    for beside, shown in (("12% of the layers read", ", 12% of the layers read"), ("", "")):
        line.beside = partial(str, beside)
        assert line.text() == f"reading the prompt, 0 s{shown}"
    line.hide()


def test_part_percent_and_seconds_are_shown_and_erased() -> None:
    terminal = Terminal()
    console = Console(io.StringIO(), terminal)
    with console.working("loading"):
        wait_for(lambda: "loading, " in terminal.getvalue())
        console.status.show("reading", 1, 4, 120)
        wait_for(lambda: "about 2 min left: reading" in terminal.getvalue())
        console.note("a note")
        seen = len(terminal.getvalue())
        assert screen(terminal.getvalue()) == ["a note", ""]
        wait_for(lambda: "reading" in terminal.getvalue()[seen:])
    assert screen(terminal.getvalue()) == ["a note", ""]


def test_nothing_is_drawn_into_an_answer() -> None:
    terminal = Terminal()
    console = Console(terminal, terminal)
    with console.working("thinking"):
        wait_for(lambda: "thinking" in terminal.getvalue())
        console.answer("forty")
        time.sleep(0.5)
        console.answer("-two")
        assert screen(terminal.getvalue()) == ["forty-two"]
        console.end_line()
    assert screen(terminal.getvalue()) == ["forty-two", ""]


def test_a_long_part_stays_on_one_line_and_sends_no_commands() -> None:
    terminal = Terminal()
    console = Console(io.StringIO(), terminal)
    with console.working("\x1b[2J" + "\u53d1" * 200):
        wait_for(lambda: "\u53d1" in terminal.getvalue())
    drawn = terminal.getvalue().split(ERASE)[1]
    assert "\x1b" not in drawn
    assert drawn.count("\u53d1") < 40


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True)])
def test_nothing_is_drawn_for_files_or_json(stream: io.StringIO, quiet: bool) -> None:
    console = Console(io.StringIO(), stream, quiet=quiet)
    with console.working("loading"), UnitProgress(console) as progress:
        progress.show("layer 1", 1, 2)
        time.sleep(0.5)
    assert stream.getvalue() == ""


def test_messages_do_not_break_the_bar() -> None:
    terminal = Terminal()
    console = Console(io.StringIO(), terminal)
    with UnitProgress(console) as progress:
        progress.show("", 0, 8)
        progress.show("layer 1", 2, 8)
        wait_for(lambda: ": layer 1" in terminal.getvalue())
        console.warn("odd")
        wait_for(lambda: terminal.getvalue().count(": layer 1") > 1)
        assert screen(terminal.getvalue())[0].endswith("warning: odd")
    assert len(screen(terminal.getvalue())) == 2


def test_what_other_processes_do_is_shown_beside_the_unit() -> None:
    terminal = Terminal()
    with UnitProgress(Console(io.StringIO(), terminal)) as progress:
        progress.show("", 0, 8)
        progress.show("expert 3.text.9", 2, 8)
        progress.show_others("3 of 64 experts by others\x1b[2J")
        wait_for(lambda: "expert 3.text.9 (3 of 64 experts by others" in terminal.getvalue())
        assert "\x1b[2J" not in terminal.getvalue()


@pytest.mark.slow
def test_a_chat_shows_that_it_loads_and_leaves_the_answer_alone() -> None:
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "ernie_cli.main", "chat", "-p", "Hello", "--max-tokens", "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        check=False,
    )
    os.close(theirs)
    told = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
    assert "starting, " in told
    assert "starting" not in "".join(screen(told.replace("\r\n", "\n")))
