"""Finds out whether the Triton kernels can run on a GPU, and if not, why; a caller may turn them off.

The choice is a parameter, one of GpuKernels: two models of one process may differ. Imports neither torch nor
triton before it is asked about a device.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sys
import sysconfig
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_local.errors import DoesNotFit
from ernie_local.kernels.gpu_capability import LEAST_CAPABILITY
from ernie_local.kernels.native import Absence

if TYPE_CHECKING:
    import torch

    from ernie_local.kernels.triton.device import TritonDevice

_WHAT = "ernie-local runs without its Triton kernels"
_TURNED_OFF = Absence(
    _WHAT, "plain PyTorch was asked for (gpu_kernels torch)", "leave gpu_kernels at its default, auto"
)


class TritonMissing(UserWarning):
    """The Triton kernels cannot run on this GPU; slower PyTorch code runs instead."""


def triton_absence(capability: tuple[int, int] | None, c_compiler: str | None = None) -> Absence | None:
    """Why the kernels cannot run on a GPU of this compute capability; None where they can.

    capability: None where there is no NVIDIA GPU. c_compiler: what the user sets for Triton to compile its
    starters with; without it Triton looks for gcc and clang.
    """
    if capability is None:
        return Absence(_WHAT, "there is no NVIDIA GPU that PyTorch can use", "run on the CPU: device cpu")
    if capability < LEAST_CAPABILITY:
        shown, least = (".".join(map(str, numbers)) for numbers in (capability, LEAST_CAPABILITY))
        return Absence(
            _WHAT,
            f"the GPU has compute capability {shown}, Triton needs {least}",
            "use a GPU from 2018 on (GeForce RTX, Tesla T4), or run on the CPU: device cpu",
        )
    if importlib.util.find_spec("triton") is None:
        wheel = "triton-windows" if sys.platform == "win32" else "triton"
        return Absence(_WHAT, "the module triton is not installed", f"pip install {wheel}")
    if sys.platform != "linux":  # triton-windows brings a compiler
        return None
    if c_compiler is None and not (shutil.which("gcc") or shutil.which("clang")):
        return Absence(
            _WHAT,
            "Triton compiles a small C module for each kernel, and neither gcc nor clang is on the PATH",
            "install gcc",
        )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return Absence(
            _WHAT,
            f"Triton compiles a small C module for each kernel, and {header} does not exist",
            "install Python's headers (python3-dev)",
        )
    return None


@functools.cache
def triton_missing(device: torch.device, gpu_kernels: str = "auto") -> Absence | None:
    """Why plain torch computes on this device; None where the Triton kernels do."""
    return _TURNED_OFF if gpu_kernels == "torch" else triton_absence(capability_of(device))


@functools.cache
def find_triton(device: torch.device, gpu_kernels: str = "auto") -> TritonDevice | None:
    """What kernels are chosen for on this device; None where plain torch computes."""
    capability = capability_of(device)
    if capability is None or triton_missing(device, gpu_kernels) is not None:
        return None
    from ernie_local.kernels.triton.device import TritonDevice

    return TritonDevice.of_capability(capability)


def require_triton(device: torch.device) -> TritonDevice:
    """As `find_triton`; raises DoesNotFit, with the reason, where the Triton kernels cannot run."""
    found = find_triton(device)
    if found is None:
        absence = triton_missing(device)
        assert absence is not None
        raise DoesNotFit(f"{absence.what} on {device}", absence.why, absence.hint)
    return found


def check_gpu_kernels(device: torch.device, gpu_kernels: str) -> None:
    """Warn, once for each device, where "auto" finds no kernels; DoesNotFit where "triton" does."""
    if gpu_kernels == "triton":
        require_triton(device)
    elif gpu_kernels == "auto":
        _warn_without_triton(device)


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of an NVIDIA GPU; None for any other device."""
    import torch

    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return torch.cuda.get_device_capability(device) if is_nvidia else None


def forget_devices() -> None:
    """Look at every device again, and warn again: for tests."""
    for remembered in (_warn_without_triton, triton_missing, find_triton):
        remembered.cache_clear()


@functools.cache
def _warn_without_triton(device: torch.device) -> None:
    absence = triton_missing(device)
    if absence is not None:
        what = f"{absence.what}, plain PyTorch computes on {device}"
        warnings.warn(replace(absence, what=what).notice, TritonMissing, stacklevel=2)
