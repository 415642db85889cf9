"""Checks Python and its threads, main memory, the operating system and the battery."""

from __future__ import annotations

import os
import platform
import sys

import psutil

from ernie_local.doctor.check import Check, Examination, Outcome
from ernie_local.planner.fit import runs_in_wsl
from ernie_local.planner.free_memory import free_memory
from ernie_local.sizes import GIB, format_bytes

# PyTorch, the smallest model and a page of images take about this much.
_LITTLE_MEMORY = GIB


def usable_cpus() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _check_python(_: Examination) -> Outcome:
    """Fails without PyTorch; slow with threads that leave processors idle or compete for them."""
    version, cpus = platform.python_version(), usable_cpus()
    facts = {"python": version, "torch": None, "threads": None, "usable_cpus": cpus}
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it loads is not there
        text = f"Python {version}, but PyTorch cannot be imported: {error}"
        return Outcome.fails(text, "pip install --force-reinstall torch", facts)
    threads = torch.get_num_threads()
    facts |= {"torch": str(torch.__version__), "threads": threads}
    text = (
        f"Python {version}, PyTorch {torch.__version__}, {_count(threads, 'thread')} on {_count(cpus, 'CPU')}"
    )
    # By default torch takes one thread a core, which is half of the CPUs where each core counts as two.
    if 2 * threads < cpus:
        fix = f"unset OMP_NUM_THREADS, or set it to the number of cores to use, up to {cpus}"
        return Outcome.slow(text, fix, facts)
    if threads > cpus:
        return Outcome.slow(text, f"OMP_NUM_THREADS={cpus}: more threads wait for each other", facts)
    return Outcome.ok(text, facts)


def _check_memory(_: Examination) -> Outcome:
    """Slow where so little is free that the system would swap; a container's limit counts.

    Whether a given model fits is decided when it is loaded.
    """
    memory, swap, free = psutil.virtual_memory(), psutil.swap_memory(), free_memory()
    facts = {
        "free_bytes": free,
        "total_bytes": memory.total,
        "is_limited": free < memory.available,
        "swap_total_bytes": swap.total,
        "swap_used_bytes": swap.used,
    }
    text = f"{format_bytes(free)} RAM free of {format_bytes(memory.total)}"
    if free < memory.available:
        text += f", by this container's limit ({format_bytes(memory.available)} without it)"
    text += f"; {format_bytes(swap.used)} of {format_bytes(swap.total)} swap in use" if swap.total else ""
    if free < _LITTLE_MEMORY:
        fix = f"close other programs, or raise the container's limit, to have {format_bytes(_LITTLE_MEMORY)}"
        return Outcome.slow(text, fix, facts)
    return Outcome.ok(text, facts)


def _check_system(examination: Examination) -> Outcome:
    """Slow where a driver lends RAM when a GPU's own memory is full: tokens take many times as long."""
    gpus, is_wsl = examination.gpus or (), runs_in_wsl()
    model = next((gpu.driver_model for gpu in gpus if gpu.driver_model), None)
    spills = bool(gpus) and (is_wsl or model == "WDDM" or (sys.platform == "win32" and model != "TCC"))
    facts = {"platform": sys.platform, "is_wsl": is_wsl, "driver_model": model, "spills": spills}
    text = f"{platform.system()} {platform.release()}" + (", inside WSL" if is_wsl else "")
    if spills:
        text += ": a full GPU continues in RAM without notice, many times slower"
        fix = (
            "NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem "
            "Fallback; or leave 1 GiB of the GPU's memory free"
        )
        return Outcome.slow(text, fix, facts)
    return Outcome.ok(text, facts)


def _check_battery(_: Examination) -> Outcome:
    """Slow on battery; ok on mains, and where there is none or the system does not tell."""
    # Some systems have no such function, some no battery.
    sensors = getattr(psutil, "sensors_battery", None)
    state = None if sensors is None else sensors()
    plugged = None if state is None else state.power_plugged
    facts = {"present": state is not None, "power_plugged": plugged}
    if state is None:
        return Outcome.ok("none", facts)
    if plugged is False:
        text = f"in use, {state.percent:.0f} % left; processors and GPUs run slower on it"
        return Outcome.slow(text, "plug the machine into the mains", facts)
    return Outcome.ok("on mains" if plugged else "present; whether it is in use is unknown", facts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


PYTHON = Check("python", _check_python, needs_torch=False)
MEMORY = Check("memory", _check_memory, needs_torch=False)
SYSTEM = Check("system", _check_system)
BATTERY = Check("battery", _check_battery)
