"""Instruction sets of the kernels: the list is the module's own, and a choice is obeyed or refused."""

from __future__ import annotations

from types import ModuleType

import pytest

from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels.native import choose_instruction_set, known_instruction_sets


class FakeModule:
    """A module that was built for x86, on a processor that has `features`."""

    def __init__(self, features: list[str]) -> None:
        self.features = features

    def cpu_features(self) -> list[str]:
        return self.features

    def known_instruction_sets(self) -> list[tuple[str, list[str], bool]]:
        return [("fast", ["a", "b", "c"], True), ("arm", ["d"], False), ("scalar", [], True)]


def fake(monkeypatch: pytest.MonkeyPatch, features: list[str]) -> None:
    monkeypatch.setattr("ernie_local.kernels.native.find_module", lambda: (FakeModule(features), ""))


def test_those_that_are_available_are_those_that_the_module_runs(native_kernels: ModuleType) -> None:
    known = known_instruction_sets()
    assert [each.name for each in known] == ["avx512vnni", "avxvnni", "avx2", "neon_i8mm", "neon", "scalar"]
    assert [each.name for each in known if each.is_available] == native_kernels.instruction_sets()
    assert known[-1].is_available


def test_features_that_lack_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, ["b"])
    fast, arm, scalar = known_instruction_sets()
    assert (fast.lacking, fast.is_available) == (("a", "c"), False)
    assert (arm.lacking, arm.is_built, arm.is_available) == (("d",), False, False)
    assert scalar.is_available


def test_a_choice_is_in_use(native_kernels: ModuleType) -> None:
    for name in native_kernels.instruction_sets():
        choose_instruction_set(name)
        assert native_kernels.instruction_set() == name


def test_what_cannot_be_chosen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, ["b", "d"])
    with pytest.raises(DoesNotFit, match=r"X 'fast' cannot run on this machine, scalar can\n.* lacks a, c\n"):
        choose_instruction_set("fast", "X")
    with pytest.raises(DoesNotFit, match=r"'arm' cannot run .*\nits kernels were not built"):
        choose_instruction_set("arm", "X")
    with pytest.raises(
        UsageError, match=r"X 'a\\x1b' is no instruction set, here are scalar\n.* fast, arm, "
    ):
        choose_instruction_set("a\x1b", "X")


def test_without_the_module_nothing_can_be_chosen(no_native_kernels: None) -> None:
    assert known_instruction_sets() == ()
    with pytest.raises(
        DoesNotFit, match=r"X 'scalar' chooses nothing: .*slower PyTorch.*\nthe C\+\+ build failed\n"
    ):
        choose_instruction_set("scalar", "X")
