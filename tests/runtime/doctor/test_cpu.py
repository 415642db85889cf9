"""The doctor's checks of the CPU kernels, with each verdict that they can give."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ernie_local.doctor import Diagnosis, Subject, cpu, examine
from ernie_local.kernels import native
from ernie_local.kernels.native import InstructionSet
from tests.runtime.doctor.looking import look

SCALAR = InstructionSet("scalar", True, ())


# kernels


def fake_module(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    module = SimpleNamespace(**{name: (lambda value=value: value) for name, value in functions.items()})
    monkeypatch.setattr("ernie_local.kernels.native.find_module", lambda: (module, ""))


@pytest.mark.parametrize(("build_type", "verdict"), [("Release", "ok"), ("Debug", "slow")])
def test_how_the_module_was_built(monkeypatch: pytest.MonkeyPatch, build_type: str, verdict: str) -> None:
    build = {
        "version": "9.1",
        "build_type": build_type,
        "compiler": "GNU 12",
        "nanobind": "3",
        "python": "3.11.2",
    }
    fake_module(monkeypatch, build_info=build)
    found = look("kernels")
    assert (found.verdict, found.text) == (verdict, f"9.1 {build_type} by GNU 12, nanobind 3, Python 3.11.2")
    assert found.facts == {"present": True, "reason": None, "build": build}


def test_a_module_that_is_missing_is_slow_once(no_native_kernels: None, tmp_path: Path) -> None:
    subject = Subject(None, tmp_path, tmp_path / "machine.json")
    found = {each.name: each for each in examine(subject)}
    assert found["kernels"].verdict == "slow"
    assert "not there, PyTorch computes: the C++ build failed" in found["kernels"].text
    assert "install a C++ compiler" in (found["kernels"].fix or "")
    assert (found["cpu"].verdict, found["self-test"].verdict) == ("ok", "ok")
    assert found["cpu"].facts["in_use"] is None
    assert found["self-test"].facts["largest_difference"] is None


# cpu


def check_sets(
    monkeypatch: pytest.MonkeyPatch, known: list[InstructionSet], in_use: str, is_forced: bool = False
) -> Diagnosis:
    fake_module(monkeypatch, instruction_set=in_use, cpu_features=["a"])
    monkeypatch.setattr(native, "known_instruction_sets", lambda: tuple(known))
    return look("cpu", isa_is_forced=is_forced)


def test_the_fastest_set_is_ok_and_what_it_would_take_for_a_faster_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fastest = InstructionSet("fastest", True, ("b", "c"))
    fast, arm = InstructionSet("fast", True, ()), InstructionSet("arm", False, ("d",))
    found = check_sets(monkeypatch, [fastest, fast, arm, SCALAR], "fast")
    assert (found.verdict, found.text) == ("ok", "fast; also here: scalar; lacks b, c for fastest")
    assert found.facts == {
        "in_use": "fast",
        "is_forced": False,
        "available": ["fast", "scalar"],
        "unavailable": [
            {"name": "fastest", "is_built": True, "lacking": ["b", "c"]},
            {"name": "arm", "is_built": False, "lacking": ["d"]},
        ],
        "features": ["a"],
    }


def test_a_faster_set_that_this_processor_could_run_but_that_was_not_built_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = [
        InstructionSet("fast", False, ()),
        InstructionSet("arm", False, ("d",)),
        InstructionSet("old", True, ()),
        SCALAR,
    ]
    found = check_sets(monkeypatch, known, "old")
    assert (found.verdict, found.text) == ("slow", "old; also here: scalar; fast was not built")
    assert found.fix == "build the kernels with a newer GCC or Clang: fast is faster"


def test_a_forced_set_is_slow_where_a_faster_one_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [InstructionSet("fast", True, ()), SCALAR]
    found = check_sets(monkeypatch, known, "scalar", is_forced=True)
    assert found.text == "scalar, forced by FORCED_BY; also here: fast"
    assert (found.verdict, found.fix) == ("slow", "unset FORCED_BY: fast is faster")
    found = check_sets(monkeypatch, known, "fast", is_forced=True)
    assert (found.verdict, found.text) == ("ok", "fast, forced by FORCED_BY; also here: scalar")


@pytest.mark.parametrize(
    ("is_built", "fix"), [(True, "use a processor .* with b$"), (False, "build the kernels with GCC")]
)
def test_the_set_that_needs_nothing_is_slow(
    monkeypatch: pytest.MonkeyPatch, is_built: bool, fix: str
) -> None:
    found = check_sets(monkeypatch, [InstructionSet("fast", is_built, ("b",)), SCALAR], "scalar")
    assert found.verdict == "slow"
    assert found.fix is not None
    assert re.match(fix, found.fix)
    assert ("lacks b for fast" in found.text) == is_built


# self-test


def test_every_set_computes_what_torch_does(native_kernels: ModuleType) -> None:
    differences = cpu.measure_differences()
    assert list(differences) == native_kernels.instruction_sets()
    # Rounding tokens to int8 costs something: a difference of nothing means that the kernels did not run.
    assert all(1e-3 < value < cpu.LARGEST_DIFFERENCE for value in differences.values()), differences


def test_the_set_in_use_stays_in_use(native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    native_kernels.use_instruction_set("scalar")
    look("self-test")
    assert native_kernels.instruction_set() == "scalar"

    def fail(*arguments: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(native_kernels, "packed_linear", fail)
    with pytest.raises(RuntimeError):
        look("self-test")
    assert native_kernels.instruction_set() == "scalar"


@pytest.mark.parametrize(
    ("operator", "change", "expected"),
    [
        ("packed_linear", lambda out: out.mul_(1.1), 0.1),
        ("packed_experts", lambda out: out.mul_(1.1), 0.1),
        ("packed_experts", lambda out: out.fill_(math.nan), math.inf),
        ("packed_linear", lambda out: out[0, 0].fill_(math.inf), math.inf),
    ],
)
def test_a_wrong_number_shows(
    native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, operator: str, change: Any, expected: float
) -> None:
    compute = getattr(native_kernels, operator)

    def compute_wrongly(*arguments: Any) -> Any:
        result = compute(*arguments)
        if native_kernels.instruction_set() == "scalar":
            # The output is the last tensor.
            change(next(one for one in reversed(arguments) if isinstance(one, torch.Tensor)))
        return result

    monkeypatch.setattr(native_kernels, operator, compute_wrongly)
    differences = cpu.measure_differences()
    assert differences.pop("scalar") == pytest.approx(expected, abs=0.02)
    assert all(value < cpu.LARGEST_DIFFERENCE for value in differences.values())


def test_a_kernel_that_refuses_good_numbers_is_wrong(
    native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_kernels, "packed_linear", lambda *arguments: (1, 0))  # "token 0 is not finite"
    assert set(cpu.measure_differences().values()) == {math.inf}


@pytest.mark.parametrize(
    ("differences", "verdict", "text", "fix"),
    [
        ({"fast": 0.0199, "scalar": 0.01}, "ok", "0.020, limit 0.02 (fast, scalar)", None),
        ({"fast": 0.0201, "scalar": 0.01}, "fails", "limit 0.02: fast 0.0201", "FORCED_BY=scalar computes"),
        ({"fast": math.inf, "scalar": 0.3}, "fails", "fast inf, scalar 0.3", "another C++ compiler"),
    ],
)
def test_the_limit_decides(
    monkeypatch: pytest.MonkeyPatch, differences: dict[str, float], verdict: str, text: str, fix: str | None
) -> None:
    monkeypatch.setattr(cpu, "measure_differences", lambda: differences)
    found = look("self-test")
    assert found.verdict == verdict
    assert found.text.endswith(text)
    assert fix is None or fix in (found.fix or "")
    largest = max(differences.values())
    assert found.facts["largest_difference"] == (None if math.isinf(largest) else largest)
