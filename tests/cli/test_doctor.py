"""`ernie-local doctor`: its lines, its exit codes, and the object of docs/json.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ernie_local.doctor
from ernie_cli.doctor_result import FACTS
from ernie_local.doctor import Diagnosis, Subject
from ernie_local.kernels import native
from tests.cli.running import Command

MODULE = native.native_module()
SETS = [] if MODULE is None else MODULE.instruction_sets()
OK = Diagnosis("one", "ok", "all is well", None, {"number": 1})
SLOW = Diagnosis("two", "slow", "half is well", "do more", {"number": 2})
FAILS = Diagnosis("three", "fails", "nothing is well", "start anew", {"number": 3})


@pytest.fixture(autouse=True)
def without_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERNIE_LOCAL_ISA", raising=False)


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of settings without a profile."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path / "settings"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Diagnosis | Exception]:
    """What the checks find, or raise, in place of the real ones."""
    findings: list[Diagnosis | Exception] = []

    def examine(subject: Subject) -> Iterator[Diagnosis]:
        assert subject.isa_setting == "ERNIE_LOCAL_ISA"
        for finding in findings:
            if isinstance(finding, Exception):
                raise finding
            yield finding

    monkeypatch.setattr(ernie_local.doctor, "examine", examine)
    return findings


def test_each_finding_is_a_line_and_its_fix_another(command: Command, found: list[Any]) -> None:
    found += [OK, SLOW]
    result = command("doctor")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == (
        "one         ok     all is well\n"
        "two         slow   half is well\n"
        "            fix    do more\n"
    )  # fmt: skip


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["lines", "json"])
@pytest.mark.parametrize(
    ("findings", "exit_code"),
    [([OK], 0), ([OK, SLOW], 1), ([SLOW, OK, FAILS], 3), ([FAILS], 3), ([], 0)],
    ids=["ok", "slow", "slow and fails", "fails", "nothing"],
)
def test_the_exit_code_is_that_of_the_worst(
    command: Command,
    found: list[Any],
    findings: list[Diagnosis],
    exit_code: int,
    as_json: tuple[str, ...],
) -> None:
    found += findings
    assert command("doctor", *as_json).exit_code == exit_code


def test_a_failing_check_is_exit_code_3_after_all_lines(command: Command, found: list[Any]) -> None:
    found += [FAILS, OK]
    result = command("doctor")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[1:] == [
        "            fix    start anew",
        "one         ok     all is well",
    ]
    assert result.stderr.splitlines() == [
        "error: ernie-local cannot run here: 1 of 2 checks failed (three)",
        "nothing is well",
        "try: start anew",
    ]


def test_json_has_the_findings_and_the_lines_go_to_stderr(command: Command, found: list[Any]) -> None:
    found += [OK, SLOW]
    result = command("doctor", "--json")
    assert result.exit_code == 1
    assert result.stdout.count("\n") == 1
    assert result.stderr.splitlines()[0] == "one         ok     all is well"
    assert result.json() == {
        "schema": "ernie-local.doctor/1",
        "ok": True,
        "verdict": "slow",
        "checks": [
            {"name": "one", "verdict": "ok", "text": "all is well", "fix": None, "facts": {"number": 1}},
            {
                "name": "two",
                "verdict": "slow",
                "text": "half is well",
                "fix": "do more",
                "facts": {"number": 2},
            },
        ],
        "error": None,
    }


def test_json_of_a_failing_check_has_the_error(command: Command, found: list[Any]) -> None:
    found += [SLOW, FAILS]
    result = command("doctor", "--json")
    value = result.json()
    assert result.exit_code == value["error"]["exit_code"] == 3
    assert (value["ok"], value["verdict"], len(value["checks"])) == (False, "fails", 2)
    assert value["error"]["hint"] == "start anew"


def test_an_unexpected_error_is_1_and_keeps_what_was_found(command: Command, found: list[Any]) -> None:
    found += [OK, ValueError("surprise"), SLOW]
    result = command("doctor", "--json")
    value = result.json()
    assert result.exit_code == 1
    assert value["error"]["code"] == "internal"
    assert [check["name"] for check in value["checks"]] == ["one"]
    assert value["ok"] is False


def test_a_wrong_option_prints_the_empty_object(command: Command) -> None:
    result = command("doctor", "--json", "--nonsense")
    value = result.json()
    assert result.exit_code == 2
    assert (value["ok"], value["verdict"], value["checks"]) == (False, None, [])
    assert value["error"]["code"] == "usage"
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.parametrize("arguments", [("--nonsense",), ("nano", "nano"), ("--json", "-x")], ids=" ".join)
def test_wrong_arguments_are_usage_errors(command: Command, arguments: tuple[str, ...]) -> None:
    result = command("doctor", *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[2] == "try: ernie-local doctor --help"


@pytest.mark.parametrize("with_native", [True, False])
def test_this_machine_has_the_documented_shape(
    command: Command, request: pytest.FixtureRequest, with_native: bool
) -> None:
    request.getfixturevalue("native_kernels" if with_native else "no_native_kernels")
    value = command("doctor", "nano", "--json").json()  # valid by the schema, with the facts of each check
    assert [check["name"] for check in value["checks"]] == list(FACTS)


@pytest.mark.parametrize("name", SETS)
def test_a_forced_set_is_in_use_and_named(
    command: Command, native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ERNIE_LOCAL_ISA", name)
    result = command("doctor", "--json")
    cpu = next(check for check in result.json()["checks"] if check["name"] == "cpu")
    assert (cpu["facts"]["in_use"], cpu["facts"]["is_forced"]) == (name, True)
    assert cpu["text"].startswith(f"{name}, forced by ERNIE_LOCAL_ISA")
    assert native_kernels.instruction_set() == name, "the self-test must leave it in use"
    assert result.exit_code == (0 if result.json()["verdict"] == "ok" else 1)


def test_a_wrong_kernel_is_exit_code_3(
    command: Command, native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = native_kernels.packed_linear

    def compute_wrongly(*arguments: Any) -> Any:
        broken = compute(*arguments)
        if native_kernels.instruction_set() == "scalar":
            arguments[-1].mul_(1.1)
        return broken

    monkeypatch.setattr(native_kernels, "packed_linear", compute_wrongly)
    result = command("doctor", "--json")
    test = next(check for check in result.json()["checks"] if check["name"] == "self-test")
    assert result.exit_code == 3
    assert test["verdict"] == "fails"
    assert "scalar 0.1" in test["text"]
    assert "(self-test)" in result.stderr
