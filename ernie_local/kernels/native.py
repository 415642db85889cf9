"""Finds the compiled module, says once when it is missing, and chooses the instruction set that it uses.

A machine without a C++ compiler installs without the module (pyproject.toml, `if.failed`); so its absence is
a state that the runtime handles and names, not an error. The module lists the instruction sets and what each
needs (csrc/runtime.cpp). Imports no torch.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

from ernie_local.errors import DoesNotFit, UsageError

MODULE_NAME = "ernie_local._kernels"
# What operators on packed pages answer (csrc/packed_bindings.cpp); anything else: refused, nothing was done.
DONE, BROKEN_TOKEN, BROKEN_PAGE = 0, 1, 2

# Columns of a head that attention in blocks takes (csrc/kernel_table.hpp).
MOST_HEAD_DIM = 128


class NativeModuleMissing(UserWarning):
    """The compiled kernels are not there; slower PyTorch code computes instead."""


@functools.cache
def find_module() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and the reason in words. Tests and profiles put others in its place."""
    try:
        return importlib.import_module(MODULE_NAME), ""
    except ModuleNotFoundError as error:
        if error.name != MODULE_NAME:
            raise
        return None, "the C++ build failed when it was installed, or nothing was installed from this checkout"
    except ImportError as error:
        return None, f"it was built but cannot be loaded: {error}"


def attends_in_blocks(head_dim: int) -> bool:
    """Whether kernels/block_attention.py serves heads of this size here, in float32 on the CPU."""
    return native_module() is not None and head_dim <= MOST_HEAD_DIM and head_dim % 2 == 0


def native_module() -> ModuleType | None:
    """The compiled module, or None where it was not built or fails to load."""
    return find_module()[0]


@dataclass(frozen=True, slots=True)
class Absence:
    """What it means that the module is missing, why it is, and what to try."""

    what: str
    why: str
    hint: str

    @property
    def notice(self) -> str:
        """Three lines for people."""
        return f"{self.what}\n{self.why}\ntry: {self.hint}"


def native_absence() -> Absence | None:
    """Why there is no module; None where it is there."""
    module, reason = find_module()
    if module is not None:
        return None
    return Absence(
        "ernie-local runs without its compiled CPU kernels: slower PyTorch code computes instead",
        reason,
        "install a C++ compiler and the Python headers, then `pip install --force-reinstall --no-deps .`",
    )


def native_notice() -> str | None:
    """Three lines for people (what, why, what to try) where the module is missing; None where it is there."""
    absence = native_absence()
    return None if absence is None else absence.notice


@functools.cache
def warn_without_native() -> None:
    """Give `native_notice` as a NativeModuleMissing warning, at most once in a process."""
    notice = native_notice()
    if notice is not None:
        warnings.warn(notice, NativeModuleMissing, stacklevel=2)


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One set of kernels. `lacking`: features that it needs and that processor or system do not offer."""

    name: str
    is_built: bool
    lacking: tuple[str, ...]

    @property
    def is_available(self) -> bool:
        """Whether its kernels can run here."""
        return self.is_built and not self.lacking


def known_instruction_sets() -> tuple[InstructionSet, ...]:
    """Every set with kernels, those of other processors too, fastest first; none without the module."""
    module = native_module()
    if module is None:
        return ()
    present = set(module.cpu_features())
    return tuple(
        InstructionSet(name, is_built, tuple(feature for feature in features if feature not in present))
        for name, features, is_built in module.known_instruction_sets()
    )


def choose_instruction_set(name: str, option: str = "instruction set") -> None:
    """Let the kernels of this process use the set `name` from now on; `option` names the choice in errors.

    Raises UsageError for an unknown name, DoesNotFit for a set that cannot run here.
    """
    module = native_module()
    if module is None:
        absence = native_absence()
        assert absence is not None
        raise DoesNotFit(
            f"{option} {_shown(name)} chooses nothing: {absence.what}", absence.why, absence.hint
        )
    known = {each.name: each for each in known_instruction_sets()}
    available = [each.name for each in known.values() if each.is_available]
    hint = f"one of {', '.join(available)}; without {option} it is {available[0]}"
    if name not in known:
        raise UsageError(
            f"{option} {_shown(name)} is no instruction set, here are {', '.join(available)}",
            f"kernels are written for {', '.join(known)}",
            hint,
        )
    if name not in available:
        lacking = ", ".join(known[name].lacking)
        raise DoesNotFit(
            f"{option} {_shown(name)} cannot run on this machine, {', '.join(available)} can",
            f"the processor or its operating system lacks {lacking}"
            if known[name].is_built
            else "its kernels were not built: they are for another kind of processor or another compiler",
            hint,
        )
    module.use_instruction_set(name)


def _shown(name: str) -> str:
    return ascii(name[:40])
