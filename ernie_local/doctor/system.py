"""The check of the operating system: whether a GPU's memory may run over into RAM, as it does on Windows."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from ernie_local.doctor.finding import Finding
from ernie_local.machine.nvidia_smi import GpuReport

NAME = "system"
_VERSION_FILE = Path("/proc/version")


def check(
    gpus: Sequence[GpuReport] | None,
    os_name: str = sys.platform,
    version_file: Path = _VERSION_FILE,
) -> Finding:
    """Slow where a driver lends RAM when a GPU's own memory is full: tokens take many times as long."""
    is_wsl = _is_wsl(version_file)
    model = next((gpu.driver_model for gpu in gpus or () if gpu.driver_model), None)
    spills = bool(gpus) and (is_wsl or model == "WDDM" or (os_name == "win32" and model != "TCC"))
    facts = {"platform": os_name, "is_wsl": is_wsl, "driver_model": model, "spills": spills}
    text = f"{platform.system()} {platform.release()}" + (", inside WSL" if is_wsl else "")
    if spills:
        text += ": a full GPU goes on in RAM, in silence and many times slower"
        fix = (
            "NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem "
            "Fallback; or leave 1 GiB of the GPU's memory free"
        )
        return Finding(NAME, "slow", text, fix, facts)
    return Finding(NAME, "ok", text, None, facts)


def _is_wsl(version_file: Path) -> bool:
    try:
        return "microsoft" in version_file.read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        return False
