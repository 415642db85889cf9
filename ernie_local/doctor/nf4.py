"""The check of what unpacks nf4 experts on a GPU: bitsandbytes, or plain PyTorch. It is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from ernie_local.doctor.finding import Finding
from ernie_local.kernels.nf4 import nf4_package_absence
from ernie_local.machine.nvidia_smi import GpuReport

NAME = "nf4"


def check(gpus: Sequence[GpuReport] | None) -> Finding:
    """Slow where a GPU is there and bitsandbytes is not. Whether it runs there, loading finds out."""
    absence = nf4_package_absence()
    version = None if absence is not None else metadata.version("bitsandbytes")
    facts: dict[str, object] = {"bitsandbytes": version, "fallback": None}
    if not gpus:
        found = "absent" if version is None else f"bitsandbytes {version}"
        return Finding(NAME, "ok", f"{found}; only nf4 experts on a GPU would use it", None, facts)
    if absence is None:
        return Finding(NAME, "ok", f"on the GPU by bitsandbytes {version}, tried when loaded", None, facts)
    facts["fallback"] = "torch"
    text = f"plain PyTorch would unpack nf4 experts on the GPU: {absence.why}"
    return Finding(NAME, "slow", text, absence.hint, facts)
