"""The entry point: help without torch, the version, and an exit code for every end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import ernie_local
from ernie_cli.main import COMMANDS
from ernie_local.errors import (
    DoesNotFit,
    ErnieLocalError,
    InputUnreadable,
    Interrupted,
    ModelUnusable,
    NoAnswer,
    OutOfMemory,
    UsageError,
)
from tests.cli.running import Command, FakeChat, run_python


def test_help_lists_the_options_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ernie_cli.main import run; code = run(['chat', '--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'prompt_toolkit', 'PIL', 'pydantic'};"
        "print('heavy:', sorted(heavy & set(sys.modules)), code)"
    )
    result = run_python(code)
    assert result.stdout.splitlines()[-1] == "heavy: [] 0", result.stderr
    assert "--image" in result.stdout
    assert "--think-budget" in result.stdout


def test_help_takes_less_than_eight_times_the_import_of_typer() -> None:
    """Of processor time: 0.3 to 0.5 s, by the machine. torch alone would take ten times that import."""

    def seconds(code: str, *arguments: str) -> float:
        before = os.times()
        assert run_python(code, *arguments).returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    # The best of some: the machine may be busy with something else.
    least = min(seconds("import typer") for _ in range(5))
    assert (
        min(seconds("from ernie_cli.main import main; main()", "chat", "--help") for _ in range(5))
        < 8 * least
    )


def test_importing_ernie_local_imports_neither_torch_nor_transformers() -> None:
    code = "import ernie_local, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert run_python(code).stdout == "False False\n"


def test_version(command: Command) -> None:
    result = command("--version")
    assert (result.exit_code, result.stdout) == (0, f"ernie-local {ernie_local.__version__}\n")


def test_no_command_shows_help_and_is_a_usage_error(command: Command) -> None:
    result = command()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "chat" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (ErnieLocalError("w", "y", "h"), 1, "failed"),
        (UsageError("w", "y", "h"), 2, "usage"),
        (DoesNotFit("w", "y", "h"), 3, "does_not_fit"),
        (ModelUnusable("w", "y", "h"), 4, "model_unusable"),
        (InputUnreadable("w", "y", "h"), 5, "input_unreadable"),
        (OutOfMemory("w", "y", "h"), 6, "out_of_memory"),
        (NoAnswer("w", "y", "h"), 7, "no_answer"),
        (Interrupted("w", "y", "h"), 130, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 6, "out_of_memory"),
        (RuntimeError("can't start new thread"), 3, "does_not_fit"),
        (ImportError("libfoo.so: cannot open shared object file", name="foo"), 3, "does_not_fit"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            6,
            "out_of_memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 6, "out_of_memory"),
        (ValueError("surprise\nsecond line"), 1, "internal"),
        (OSError(28, "No space left on device", "chat.json"), 1, "failed"),
    ],
)
def test_every_error_ends_with_its_exit_code(
    command: Command, fake_chat: FakeChat, error: BaseException, exit_code: int, code: str
) -> None:
    fake_chat.error = error
    result = command("chat", "-p", "hi")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == (1 if code == "internal" else 3)

    result = command("chat", "-p", "hi", "--json")
    assert result.exit_code == exit_code
    assert result.json()["error"]["code"] == code
    assert result.json()["error"]["exit_code"] == exit_code
    assert result.json()["ok"] is False


def test_every_class_of_error_has_a_code_name(error_kinds: list[type[ErnieLocalError]]) -> None:
    from ernie_cli.failures import failure_of

    described = [failure_of(kind("w", "y", "h")) for kind in error_kinds]
    assert len({failure.code for failure in described}) == len(error_kinds) == 9


def test_arguments_that_the_library_names_become_options(command: Command) -> None:
    """Every name in `parameter("name")` below the CLI is an option of some command, once it is spelled."""
    from ernie_cli.failures import spell_options
    from ernie_local.errors import parameter

    root = Path(__file__).parents[2]
    named = {
        name
        for folder in ("ernie_local", "quant", "calibration")
        for path in (root / folder).rglob("*.py")
        for name in re.findall(r"""\bparameter\(["']([a-z_]+)["']""", path.read_text(encoding="utf-8"))
    }
    helps = " ".join(command(name, "--help").stdout for name in COMMANDS)
    # Arguments of single functions of the library, which no command passes on.
    named -= {"variant", "weight"}
    assert [name for name in sorted(named) if f"{spell_options(parameter(name))} " not in helps] == []


def test_internal_error_is_one_line_and_debug_shows_the_traceback(
    command: Command, fake_chat: FakeChat
) -> None:
    fake_chat.error = ValueError("surprise")
    assert command("chat", "-p", "hi").stderr == (
        "error: internal error: ValueError: surprise; run again with --debug for the traceback\n"
    )
    assert "Traceback" in command("chat", "-p", "hi", "--debug").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "--nonsense"),
        ("chat", "--think", "maybe", "-p", "hi"),
        ("chat", "--temp", "-1", "-p", "hi"),
        ("chat", "--top-p", "x", "-p", "hi"),
        ("chat", "--dtype", "float8", "-p", "hi"),
        ("chat", "a", "b", "-p", "hi"),
        ("chat", "-p"),
        ("talk",),
        ("--nonsense",),
    ],
)
def test_wrong_options_are_usage_errors_of_three_lines(command: Command, arguments: tuple[str, ...]) -> None:
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 3
    assert result.stderr.splitlines()[2].endswith("--help")


def test_wrong_option_with_json_prints_one_object(command: Command) -> None:
    result = command("chat", "--json", "--nonsense")
    assert result.exit_code == 2
    assert result.json()["error"]["code"] == "usage"
    assert result.json()["model"] is None


def test_every_command_that_computes_obeys_the_instruction_set() -> None:
    assert {name for name, command in COMMANDS.items() if not command.computes} == {"vram", "cache"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_an_empty_object_when_it_did_not_begin(command: Command, name: str) -> None:
    result = command(name, "--json", "--nonsense")
    value = result.json()
    assert (value["ok"], value["error"]["code"], result.exit_code) == (False, "usage", 2)
    assert set(value) == {"schema", "ok", "error", *asdict(COMMANDS[name].new_result())}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options_once(command: Command, name: str) -> None:
    text = command(name, "--help").stdout
    assert text.count("--json ") == text.count("--debug ") == 1


def run_with_a_reader_that_goes_away(code: str, *arguments: str) -> tuple[int, bytes]:
    """The exit code and the stderr of `code` when nobody reads its stdout."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with os.fdopen(writer, "wb") as stdout:
        process = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
        )
    return process.returncode, process.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    code = "from ernie_cli import main\nmain.main()\n"
    assert run_with_a_reader_that_goes_away(code, "inspect", "nano") == (1, b"")


def test_a_reader_of_json_that_goes_away_sees_the_error_alone() -> None:
    code = "from ernie_cli import main; main.main()"
    exit_code, stderr = run_with_a_reader_that_goes_away(code, "chat", "--json", "--nonsense")
    assert exit_code == 1
    assert len(stderr.splitlines()) == 3


def test_ctrl_c_before_there_is_a_chat_is_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_local import model_files

    monkeypatch.setattr(
        model_files, "find_model_files", lambda name, **_: os.kill(os.getpid(), signal.SIGINT)
    )
    result = command("chat", "-p", "hi", "--json")
    assert result.exit_code == 130
    assert result.json()["error"]["code"] == "interrupted"
