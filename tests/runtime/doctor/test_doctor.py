"""Each check of the doctor, with each verdict that it can give."""

from __future__ import annotations

import math
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from ernie_local.doctor import (
    Finding,
    Subject,
    cuda,
    examine,
    instruction_set,
    kernels,
    memory,
    python,
    self_test,
    worst_verdict,
)
from ernie_local.kernels.native import InstructionSet

SETTING = "FORCED_BY"
SCALAR = InstructionSet("scalar", True, ())


def finding(verdict: Any, fix: str | None = "fix") -> Finding:
    return Finding("name", verdict, "text", None if verdict == "ok" else fix, {})


def test_the_worst_verdict_wins() -> None:
    ok, slow, fails = (finding(verdict) for verdict in ("ok", "slow", "fails"))
    assert worst_verdict([]) == worst_verdict([ok]) == "ok"
    assert worst_verdict([ok, slow, ok]) == "slow"
    assert worst_verdict([slow, fails, ok]) == "fails"


def test_texts_stay_on_one_line() -> None:
    found = Finding("name", "slow", "a\nb", "c\n\td", {})
    assert (found.text, found.fix) == ("a b", "c d")


@pytest.mark.parametrize("verdict", ["ok", "slow"])
def test_a_fix_goes_with_what_is_not_ok_alone(verdict: Any) -> None:
    with pytest.raises(AssertionError):
        Finding("name", verdict, "text", "fix" if verdict == "ok" else None, {})


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(None, tmp_path, tmp_path / "machine.json")


def test_every_check_of_this_machine_gives_a_finding(native_kernels: ModuleType, subject: Subject) -> None:
    names = [found.name for found in examine(SETTING, isa_is_forced=False, subject=subject)]
    assert names == [
        *("python", "memory", "kernels", "cpu", "self-test", "cuda", "gpu", "triton", "nf4", "link"),
        *("pinned", "system", "battery", "disk", "profile"),
    ]


# python


@pytest.mark.parametrize(
    ("threads", "cpus", "verdict", "text", "fix"),
    [
        (2, 2, "ok", "2 threads on 2 CPUs", ""),
        (1, 1, "ok", "1 thread on 1 CPU", ""),
        (2, 4, "ok", "2 threads on 4 CPUs", ""),
        (1, 4, "slow", "1 thread on 4 CPUs", "unset OMP_NUM_THREADS"),
        (3, 2, "slow", "3 threads on 2 CPUs", "OMP_NUM_THREADS=2"),
    ],
)
def test_threads_suit_the_cpus(
    monkeypatch: pytest.MonkeyPatch, threads: int, cpus: int, verdict: str, text: str, fix: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(python, "usable_cpus", lambda: cpus)
    found = python.check()
    assert found.verdict == verdict
    assert found.text.endswith(f", PyTorch {torch.__version__}, {text}")
    assert (found.fix or "").startswith(fix)
    assert (found.facts["threads"], found.facts["usable_cpus"]) == (threads, cpus)


def test_usable_cpus_are_those_of_the_process() -> None:
    assert 1 <= python.usable_cpus() <= (psutil.cpu_count() or 1)


def test_without_torch_it_fails_and_what_needs_torch_is_left_out(
    monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = list(examine(SETTING, isa_is_forced=False, subject=subject))
    assert [each.name for each in found] == ["python", "memory", "kernels"]
    assert found[0].verdict == "fails"
    assert "PyTorch cannot be imported" in found[0].text
    assert found[0].facts["torch"] is None


# memory


@pytest.mark.parametrize(("free", "verdict"), [(1 << 30, "ok"), ((1 << 30) - 1, "slow")])
@pytest.mark.parametrize("available", [2 << 30, 0])
def test_little_memory_is_slow_whatever_leaves_so_little(
    monkeypatch: pytest.MonkeyPatch, free: int, verdict: str, available: int
) -> None:
    available = available or free
    system = SimpleNamespace(available=available, total=8 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: system)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=4 << 30, used=1 << 30))
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    found = memory.check()
    assert found.verdict == verdict
    assert "free of 8.00 GiB" in found.text
    assert ("container's limit (2.00 GiB without it)" in found.text) == (available > free)
    assert found.text.endswith("1.00 GiB of 4.00 GiB swap in use")
    assert found.facts == {
        "free_bytes": free,
        "total_bytes": 8 << 30,
        "is_limited": available > free,
        "swap_total_bytes": 4 << 30,
        "swap_used_bytes": 1 << 30,
    }


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
    found = kernels.check()
    assert (found.verdict, found.text) == (verdict, f"9.1 {build_type} by GNU 12, nanobind 3, Python 3.11.2")
    assert found.facts == {"present": True, "reason": None, "build": build}


def test_a_module_that_is_missing_is_slow_once(no_native_kernels: None, subject: Subject) -> None:
    found = {each.name: each for each in examine(SETTING, isa_is_forced=False, subject=subject)}
    assert found["kernels"].verdict == "slow"
    assert "not there, PyTorch computes: the C++ build failed" in found["kernels"].text
    assert "install a C++ compiler" in (found["kernels"].fix or "")
    assert (found["cpu"].verdict, found["self-test"].verdict) == ("ok", "ok")
    assert found["cpu"].facts["in_use"] is None
    assert found["self-test"].facts["largest_difference"] is None


# cpu


def cpu(
    monkeypatch: pytest.MonkeyPatch, known: list[InstructionSet], in_use: str, is_forced: bool = False
) -> Finding:
    fake_module(monkeypatch, instruction_set=in_use, cpu_features=["a"])
    monkeypatch.setattr(instruction_set, "known_instruction_sets", lambda: tuple(known))
    return instruction_set.check(SETTING, is_forced=is_forced)


def test_the_fastest_set_is_ok_and_what_it_would_take_for_a_faster_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fastest = InstructionSet("fastest", True, ("b", "c"))
    fast, arm = InstructionSet("fast", True, ()), InstructionSet("arm", False, ("d",))
    found = cpu(monkeypatch, [fastest, fast, arm, SCALAR], "fast")
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


def test_a_forced_set_is_slow_where_a_faster_one_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [InstructionSet("fast", True, ()), SCALAR]
    found = cpu(monkeypatch, known, "scalar", is_forced=True)
    assert found.text == "scalar, forced by FORCED_BY; also here: fast"
    assert (found.verdict, found.fix) == ("slow", "unset FORCED_BY: fast is faster")
    found = cpu(monkeypatch, known, "fast", is_forced=True)
    assert (found.verdict, found.text) == ("ok", "fast, forced by FORCED_BY; also here: scalar")


@pytest.mark.parametrize(
    ("is_built", "fix"), [(True, "use a processor .* with b$"), (False, "build the kernels with GCC")]
)
def test_the_set_that_needs_nothing_is_slow(
    monkeypatch: pytest.MonkeyPatch, is_built: bool, fix: str
) -> None:
    found = cpu(monkeypatch, [InstructionSet("fast", is_built, ("b",)), SCALAR], "scalar")
    assert found.verdict == "slow"
    assert found.fix is not None
    assert re.match(fix, found.fix)
    assert ("lacks b for fast" in found.text) == is_built


# self-test


def test_every_set_computes_what_torch_does(native_kernels: ModuleType) -> None:
    differences = self_test.measure_differences()
    assert list(differences) == native_kernels.instruction_sets()
    # Rounding tokens to int8 costs something: a difference of nothing means that the kernels did not run.
    assert all(1e-3 < value < self_test.LARGEST_DIFFERENCE for value in differences.values()), differences


def test_the_set_in_use_stays_in_use(native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    native_kernels.use_instruction_set("scalar")
    self_test.check(SETTING)
    assert native_kernels.instruction_set() == "scalar"

    def fail() -> Any:
        raise RuntimeError

    monkeypatch.setattr(self_test, "_relative_difference", lambda *product: fail())
    with pytest.raises(RuntimeError):
        self_test.check(SETTING)
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
    differences = self_test.measure_differences()
    assert differences.pop("scalar") == pytest.approx(expected, abs=0.02)
    assert all(value < self_test.LARGEST_DIFFERENCE for value in differences.values())


def test_a_kernel_that_refuses_good_numbers_is_wrong(
    native_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_kernels, "packed_linear", lambda *arguments: (1, 0))  # "token 0 is not finite"
    assert set(self_test.measure_differences().values()) == {math.inf}


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
    monkeypatch.setattr(self_test, "measure_differences", lambda: differences)
    found = self_test.check(SETTING)
    assert found.verdict == verdict
    assert found.text.endswith(text)
    assert fix is None or fix in (found.fix or "")
    largest = max(differences.values())
    assert found.facts["largest_difference"] == (None if math.isinf(largest) else largest)


# cuda


def fake_cuda(monkeypatch: pytest.MonkeyPatch, built_for: str | None, is_available: Any) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize(
    ("built_for", "text"),
    [(None, "not used: this PyTorch is built without CUDA"), ("12.8", "not used: no CUDA device")],
)
def test_no_cuda_is_ok_and_says_why(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, text: str
) -> None:
    fake_cuda(monkeypatch, built_for, lambda: False)
    found = cuda.check(None)
    assert (found.verdict, found.text) == ("ok", text)
    assert found.facts == {"built_for": built_for, "driver": None, "is_available": False, "devices": []}


def test_a_cuda_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, "12.8", lambda: True)
    gpu = SimpleNamespace(name="GPU 9000", total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    found = cuda.check(None)
    assert (found.verdict, found.text) == ("ok", "CUDA 12.8: GPU 9000; used only with --device cuda")
    assert found.facts["is_available"] is True
    assert found.facts["devices"] == [{"name": "GPU 9000", "total_bytes": 8 << 30}]


def test_a_driver_that_torch_complains_of_is_slow_and_no_warning_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def complain() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    fake_cuda(monkeypatch, "12.8", complain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cuda.check(None)
    assert (found.verdict, found.text) == ("slow", "not used: The NVIDIA driver on your system is too old")


def test_a_device_that_does_not_start_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> Any:
        raise RuntimeError("CUDA error: out of sorts\nmore")

    fake_cuda(monkeypatch, "12.8", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    found = cuda.check(None)
    assert (found.verdict, found.text) == ("slow", "not used: CUDA error: out of sorts more")
    assert found.facts["is_available"] is False
