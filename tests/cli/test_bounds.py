"""Numbers that options take: each has bounds, and what is beyond them is refused before anything is read."""

from __future__ import annotations

import os

import pytest
import typer

from ernie_cli.main import app
from tests.cli.running import Command

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
NUMBERS = [
    (name, parameter)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.type.name.startswith(("int", "float"))
]


def test_every_number_has_bounds() -> None:
    assert len(NUMBERS) > 15
    for name, parameter in NUMBERS:
        assert parameter.type.min is not None, (name, parameter.name)
        # The machine bounds threads.
        assert (parameter.type.max is None) == (parameter.name == "threads"), (name, parameter.name)


@pytest.mark.parametrize("threads", [str(1 + (os.cpu_count() or 1)), "4096", "100000", "9" * 30])
@pytest.mark.parametrize("arguments", ["chat nano -p hi", "quantize nano out", "eval nano nano"])
def test_more_threads_than_processors_are_refused(command: Command, threads: str, arguments: str) -> None:
    done = command(*arguments.split(), "--threads", threads)
    assert done.exit_code == 3
    assert f"--threads {threads}: this machine has {os.cpu_count()} logical processors" in done.stderr
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize("number", ["0", "-1", "x", "1e3", "nan", "9" * 5000])
def test_what_is_no_number_of_threads_is_a_wrong_option(command: Command, number: str) -> None:
    done = command("chat", "nano", "-p", "hi", "--threads", number)
    assert done.exit_code in (2, 3)
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "nano", "-p", "hi", "--seed", str(2**63)),
        ("chat", "nano", "-p", "hi", "--temp", "1e9"),
        ("chat", "nano", "-p", "hi", "--repetition-penalty", "inf"),
        ("chat", "nano", "-p", "hi", "--top-k", str(2**80)),
        ("quantize", "nano", "out", "--samples", str(10**18)),
        ("quantize", "nano", "out", "--seed", str(2**63)),
        ("eval", "nano", "nano", "--questions-each", str(10**9)),
        ("vram", "--sessions", "--vram", "8GiB", "--gpus", str(10**12)),
    ],
    ids=" ".join,
)
def test_numbers_beyond_all_sense_are_refused(command: Command, arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert arguments[-2] in done.stderr
