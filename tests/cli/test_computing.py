"""ERNIE_LOCAL_ISA: obeyed by every command before it computes, and refused in three lines."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from ernie_cli.chat import conversation
from ernie_local.kernels import native
from tests.cli.running import Command, FakeChat, run_python

MODULE = native.native_module()
SETS = [] if MODULE is None else MODULE.instruction_sets()
LOADED = (
    "import sys; from ernie_cli.main import run; code = run(sys.argv[1:]);"
    "print('loaded:', sorted({'torch', 'ernie_local._kernels'} & set(sys.modules)), code)"
)


@pytest.fixture(autouse=True)
def without_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERNIE_LOCAL_ISA", raising=False)


@pytest.mark.parametrize("name", SETS)
def test_the_forced_set_is_in_use_when_the_model_is_opened(
    command: Command,
    fake_chat: FakeChat,
    native_kernels: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    in_use: list[str] = []

    def open_chat(*arguments: object) -> Any:
        in_use.append(native_kernels.instruction_set())
        return fake_chat

    monkeypatch.setattr(conversation, "open_chat", open_chat)
    monkeypatch.setenv("ERNIE_LOCAL_ISA", name)
    assert command("chat", "-p", "hi").exit_code == 0
    assert in_use == [name]


def test_an_empty_value_changes_nothing(
    command: Command, fake_chat: FakeChat, native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_kernels.use_instruction_set("scalar")
    monkeypatch.setenv("ERNIE_LOCAL_ISA", "")
    assert command("chat", "-p", "hi").exit_code == 0
    assert native_kernels.instruction_set() == "scalar"


@pytest.mark.parametrize("words", [("chat", "-p", "hi"), ("doctor",)], ids=" ".join)
def test_a_name_that_means_nothing_is_a_usage_error(
    command: Command,
    no_weights: None,
    native_kernels: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv("ERNIE_LOCAL_ISA", "mmx")
    result = command(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    what, why, hint = result.stderr.splitlines()
    assert what == f"error: ERNIE_LOCAL_ISA 'mmx' is no instruction set, here are {', '.join(SETS)}"
    assert "avx512vnni, avxvnni, avx2, neon_i8mm, neon, scalar" in why
    assert SETS[0] in hint

    result = command(*words, "--json")
    assert result.exit_code == 2
    assert result.json()["error"]["code"] == "usage"
    assert result.json()["schema"] == f"ernie-local.{words[0]}/1"


def test_a_set_that_this_machine_lacks_cannot_run_here(
    command: Command, native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = next(
        name for name, _, _ in native_kernels.known_instruction_sets() if name not in SETS
    )  # neon and those of x86 never run on one machine
    monkeypatch.setenv("ERNIE_LOCAL_ISA", lacking)
    result = command("doctor")
    assert (result.exit_code, result.stdout) == (3, "")
    what = result.stderr.splitlines()[0]
    assert what == f"error: ERNIE_LOCAL_ISA '{lacking}' cannot run on this machine, {', '.join(SETS)} can"
    assert len(result.stderr.splitlines()) == 3


def test_without_the_native_module_its_notice_is_given(
    command: Command, no_native_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERNIE_LOCAL_ISA", "avx2")
    result = command("doctor")
    assert (result.exit_code, result.stdout) == (3, "")
    what, why, hint = result.stderr.splitlines()
    notice = (native.native_notice() or "").splitlines()
    assert what == f"error: ERNIE_LOCAL_ISA 'avx2' chooses nothing: {notice[0]}"
    assert [why, hint] == notice[1:]


@pytest.mark.parametrize("words", [(), ("chat",), ("doctor",)], ids=str)
@pytest.mark.parametrize("value", ["scalar", "mmx"])
def test_help_neither_obeys_nor_loads_anything(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], value: str
) -> None:
    monkeypatch.setenv("ERNIE_LOCAL_ISA", value)
    result = run_python(LOADED, *words, "--help")
    assert result.stdout.splitlines()[-1] == "loaded: [] 0", result.stderr


def test_a_wrong_option_is_told_before_the_variable(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERNIE_LOCAL_ISA", "mmx")
    assert "--nonsense" in command("doctor", "--nonsense").stderr
