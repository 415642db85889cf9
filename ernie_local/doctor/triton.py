"""The check of Triton, which compiles kernels for GPUs: whether they can run here. It is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from ernie_local.doctor.finding import Finding
from ernie_local.kernels.gpu import LEAST_CAPABILITY, triton_absence
from ernie_local.machine.nvidia_smi import GpuReport

NAME = "triton"
_PACKAGES = ("triton", "triton-windows")


def check(gpus: Sequence[GpuReport] | None) -> Finding:
    """Slow where there is a GPU on which the kernels cannot run; what stands in for them is named."""
    version = next(filter(None, map(_version, _PACKAGES)), None)
    if not gpus:
        text = (
            "absent, and only a GPU would use it" if version is None else f"Triton {version}, without a GPU"
        )
        return Finding(NAME, "ok", text, None, {"version": version, "fallback": None})
    # The newest decides; a driver that does not tell is asked no more.
    capability = max(gpu.compute_capability or LEAST_CAPABILITY for gpu in gpus)
    absence = triton_absence(capability)
    facts = {"version": version, "fallback": None if absence is None else "torch"}
    if absence is None:
        return Finding(NAME, "ok", f"Triton {version}", None, facts)
    text = f"not used, plain PyTorch would compute on the GPU: {absence.why}"
    return Finding(NAME, "slow", text, absence.hint, facts)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
