"""The hardware that measurements are tied to, found without torch."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from ernie_local.machine.nvidia_smi import read_gpus
from ernie_local.planner.profile import HardwareKey

_LONGEST_NAME = 120


def find_hardware() -> HardwareKey:
    """Of this machine; GPUs by the first one's name."""
    gpus = read_gpus()
    return HardwareKey(
        cpu=processor_name(),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        ram_bytes=psutil.virtual_memory().total,
        gpu=_line(gpus[0].name) if gpus else None,
    )


def processor_name(information: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name for itself, else the kind of machine."""
    try:
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return _line(value)
    return _line(platform.processor() or platform.machine() or "unknown")


def _line(text: str) -> str:
    printable = "".join(one if one.isprintable() else " " for one in text)
    return " ".join(printable.split())[:_LONGEST_NAME] or "unknown"
