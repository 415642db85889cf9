"""Names this machine's processor, memory and GPUs, and finds its stored profile. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ernie_local.planner.cpu_limits import cpu_model_name
from ernie_local.planner.free_memory import system_memory
from ernie_local.planner.profile import HardwareKey, MachineProfile, read_profile

_LONGEST_NAME = 120
# Of the driver's kernel module, and of Windows' driver as WSL shows it.
_DRIVER_FILES = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
_DRIVER_MODELS = {0: "WDDM", 1: "TCC", 2: "MCDM"}  # as NVML numbers them


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A program that uses a GPU's memory. name: without its folder; bytes: None where the driver hides it."""

    name: str
    bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One GPU now. Everything but the name may be unknown.

    link_generation, link_width_most: the most that GPU and slot can do; link_width: lanes in use now.
    driver_model: WDDM, TCC or MCDM on Windows, None elsewhere.
    """

    name: str
    driver_version: str | None
    compute_capability: tuple[int, int] | None
    total_bytes: int | None
    free_bytes: int | None
    link_generation: int | None
    link_width: int | None
    link_width_most: int | None
    driver_model: str | None
    processes: tuple[GpuProcess, ...]


def installed_gpus(nvml: Any = None) -> tuple[GpuStatus, ...] | None:
    """All NVIDIA GPUs of this machine; None where no driver answers. nvml: pynvml, or a stand-in for it."""
    if nvml is None:
        # Importing pynvml takes a tenth of the time of `vram`, so it is left out where there is no driver.
        if sys.platform == "linux" and not any(Path(file).exists() for file in _DRIVER_FILES):
            return None
        import pynvml

        nvml = pynvml
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        try:
            return tuple(_status(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        finally:
            nvml.nvmlShutdown()
    return None


def find_hardware() -> HardwareKey:
    """What measurements of this machine are tied to; of GPUs the first one's name."""
    gpus = installed_gpus()
    return HardwareKey(
        cpu=processor_name(),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        ram_bytes=system_memory().total,
        gpu=_line(gpus[0].name) if gpus else None,
    )


def processor_name(information: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name for itself, else the kind of machine."""
    return _line(cpu_model_name(information))


def compare_profile(path: Path) -> tuple[MachineProfile | None, str | None]:
    """The profile at `path`, None without one, and how the hardware it was measured on differs from this.

    InputUnreadable for a file that is no profile.
    """
    profile = read_profile(path)
    return profile, None if profile is None else profile.hardware.difference(find_hardware())


def own_profile(path: Path) -> MachineProfile | None:
    """The profile at `path` if it was measured on this hardware. InputUnreadable as `compare_profile`."""
    profile, difference = compare_profile(path)
    return profile if difference is None else None


def _status(nvml: Any, index: int) -> GpuStatus:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        """None for what this driver does not tell."""
        try:
            return call(*arguments)
        except (nvml.NVMLError, UnicodeDecodeError):
            return None

    def process(running: Any) -> GpuProcess:
        name = (ask(nvml.nvmlSystemGetProcessName, running.pid) or "").replace("\\", "/").rpartition("/")[2]
        return GpuProcess(name or "unknown", running.usedGpuMemory)

    memory = ask(nvml.nvmlDeviceGetMemoryInfo, device)
    capability = ask(nvml.nvmlDeviceGetCudaComputeCapability, device)
    return GpuStatus(
        name=ask(nvml.nvmlDeviceGetName, device) or "unknown GPU",
        driver_version=ask(nvml.nvmlSystemGetDriverVersion),
        compute_capability=None if capability is None else (capability[0], capability[1]),
        total_bytes=getattr(memory, "total", None),
        free_bytes=getattr(memory, "free", None),
        link_generation=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, device),
        link_width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, device),
        link_width_most=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, device),
        driver_model=_DRIVER_MODELS.get(ask(nvml.nvmlDeviceGetCurrentDriverModel, device)),
        processes=tuple(map(process, ask(nvml.nvmlDeviceGetComputeRunningProcesses, device) or ())),
    )


def _line(text: str) -> str:
    printable = "".join(one if one.isprintable() else " " for one in text)
    return " ".join(printable.split())[:_LONGEST_NAME] or "unknown"
