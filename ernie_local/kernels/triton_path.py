"""Whether the Triton kernels can run here, and if not, why. Imports neither torch nor triton.

Knows what compiling a kernel takes. Who forces the kernels off, and what computes instead, is the caller's.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

from ernie_local.kernels.native import Absence

# Older GPUs (Pascal, 6.x) have no Triton; for this one and newer ones every kernel has been compiled.
LEAST_CAPABILITY = (7, 0)
_WHAT = "ernie-local runs without its Triton kernels"


def triton_absence(capability: tuple[int, int] | None, c_compiler: str | None = None) -> Absence | None:
    """Why the kernels cannot run on a GPU of this compute capability; None where they can.

    capability: None where there is no NVIDIA GPU. c_compiler: what the user sets for Triton to compile its
    starters with; without it Triton looks for gcc and clang.
    """
    if capability is None:
        return Absence(_WHAT, "there is no NVIDIA GPU that PyTorch can use", "compute on the CPU")
    if capability < LEAST_CAPABILITY:
        shown, least = (".".join(map(str, numbers)) for numbers in (capability, LEAST_CAPABILITY))
        return Absence(
            _WHAT,
            f"the GPU has compute capability {shown}, Triton needs {least}",
            "use a GPU from 2018 on (GeForce RTX, Tesla T4), or compute on the CPU",
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
            f"Triton compiles a small C module for each kernel, and {header} is not there",
            "install Python's headers (python3-dev)",
        )
    return None
