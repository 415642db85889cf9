"""Finds the compiled module and says, once, when it is not there. Owns no kernel.

A machine without a C++ compiler installs without it (pyproject.toml, `if.failed`); so its absence is a state
that the runtime handles and names, not an error.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

MODULE_NAME = "ernie_local._kernels"


class NativeModuleMissing(UserWarning):
    """The compiled kernels are not there; slower PyTorch code computes instead."""


@functools.cache
def _find() -> tuple[ModuleType | None, str]:
    """The native module, or None and the reason in words."""
    try:
        return importlib.import_module(MODULE_NAME), ""
    except ModuleNotFoundError as error:
        if error.name != MODULE_NAME:
            raise
        return None, "the C++ build failed when it was installed, or nothing was installed from this checkout"
    except ImportError as error:
        return None, f"it was built but cannot be loaded: {error}"


def native_module() -> ModuleType | None:
    """The compiled module (typed in _kernels.pyi), or None where it was not built or fails to load."""
    return _find()[0]


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
    module, reason = _find()
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
