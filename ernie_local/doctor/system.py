"""Checks Python, memory, the operating system and the battery; the disk, a model's files, the profile."""

from __future__ import annotations

import platform
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import psutil

from ernie_local.doctor.check import Diagnosis, Subject, WeightFiles
from ernie_local.errors import DoesNotFit, ErnieLocalError, InputUnreadable, ModelUnusable
from ernie_local.machine.libraries import load_failure, torch_failure
from ernie_local.planner.cpu_limits import CpuLimits, cpu_quota, usable_cpus
from ernie_local.planner.fit import runs_in_wsl
from ernie_local.planner.free_memory import free_memory, system_memory
from ernie_local.sizes import GIB, MIB, format_bytes

if TYPE_CHECKING:
    from ernie_local.machine.disk import Storage

# PyTorch, the smallest model and a page of images take about this much.
_LITTLE_MEMORY = GIB
# With half of a 4-bit model's experts in memory, a slower disk takes two seconds a token and more.
_SLOW_BYTES_PER_SECOND = 0.5e9
_LITTLE_SPACE = 2 * GIB
_DISK_SECONDS = 0.6
_FILE_BYTES = 48 * MIB  # no more: a slow disk takes seconds to write it
_PAGE_BYTES = _FILE_BYTES // 8
_STORAGE_KINDS = {
    "network": "a disk of the network or of another system",
    "memory": "in memory, so this is not the speed of a disk",
    "rotating": "a rotating disk, as it says",  # virtual ones say so, too
    "solid": "a solid-state disk",
    "unknown": "a disk of unknown kind",
}


def check_python(subject: Subject) -> Diagnosis:
    """Fails without PyTorch; slow with threads that leave processors idle or compete for them, or where a
    container has less than one CPU's time."""
    version, cpus, quota = platform.python_version(), usable_cpus(), cpu_quota(subject.system_root)
    limits = CpuLimits.of_machine(subject.system_root)._replace(usable=cpus)
    facts = {"python": version, "torch": None, "threads": None, "usable_cpus": cpus, "cpu_quota": quota}
    facts["performance_cores"] = None if limits.kinds is None else limits.kinds.performance
    failed = torch_failure()
    try:
        if failed is None:
            import torch
    except Exception as error:
        failed = load_failure(error)
        if failed is None:
            raise
    if failed is not None:
        return Diagnosis.fails(f"Python {version}, but {failed.what}; {failed.why}", failed.hint, facts)
    threads, useful = torch.get_num_threads(), limits.useful_threads
    if useful < cpus:
        threads = min(threads, useful)  # as when a model is loaded
    used = _threads_in_use(subject, limits, threads)
    shown = f"{_count(used, 'thread')} on {_described(limits)}"
    facts |= {"torch": str(torch.__version__), "threads": used}
    text = f"Python {version}, PyTorch {torch.__version__}, {shown}"
    if quota is not None and quota < 1:
        fix = "raise the container's quota to 1 CPU or more (docker --cpus, cpu.max, cpu.cfs_quota_us)"
        return Diagnosis.slow(text, fix, facts)
    # By default torch takes one thread a core, which is half of the CPUs where each core counts as two.
    if 2 * threads < useful:
        fix = f"unset OMP_NUM_THREADS, or set it to the number of cores to use, up to {useful}"
        return Diagnosis.slow(text, fix, facts)
    if threads > cpus:
        return Diagnosis.slow(text, f"OMP_NUM_THREADS={cpus}: more threads wait for each other", facts)
    return Diagnosis.ok(text, facts)


def _threads_in_use(subject: Subject, limits: CpuLimits, threads: int) -> int:
    """Of `threads`, as many as a loaded model computes with: efficiency cores only where they were faster."""
    profile = None if limits.kinds is None else subject.own_profile
    if limits.kinds is None or (profile is not None and profile.efficiency_cores):
        return threads
    return min(threads, limits.kinds.performance)


def _described(limits: CpuLimits) -> str:
    text = _count(limits.usable, "CPU")
    if limits.kinds is not None:
        text += f" with {_count(limits.kinds.performance, 'performance core')}"
    if limits.quota is not None and limits.quota < limits.usable:
        text += f", a quota allows the time of {limits.quota:g}"
    return text


def check_main_memory(subject: Subject) -> Diagnosis:
    """Slow where so little is free that the system would swap; a container's limit counts."""
    try:
        memory, swap, free = system_memory(), psutil.swap_memory(), free_memory(subject.system_root)
    except DoesNotFit as error:
        keys = ("free_bytes", "total_bytes", "is_limited", "swap_total_bytes", "swap_used_bytes")
        return Diagnosis.fails(f"{error.what}; {error.why}", error.hint, dict.fromkeys(keys))
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
        return Diagnosis.slow(text, fix, facts)
    return Diagnosis.ok(text, facts)


def check_system(subject: Subject) -> Diagnosis:
    """Slow where a driver lends RAM when a GPU's own memory is full: tokens take many times as long."""
    gpus, is_wsl = subject.gpus or (), runs_in_wsl()
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
        return Diagnosis.slow(text, fix, facts)
    return Diagnosis.ok(text, facts)


def check_battery(_: Subject) -> Diagnosis:
    """Slow on battery; ok on mains, and where there is none or the system does not tell."""
    # Some systems have no such function, some no battery.
    sensors = getattr(psutil, "sensors_battery", None)
    state = None
    if sensors is not None:
        with suppress(OSError):  # of a system without /sys
            state = sensors()
    plugged = None if state is None else state.power_plugged
    facts = {"present": state is not None, "power_plugged": plugged}
    if state is None:
        return Diagnosis.ok("none", facts)
    if plugged is False:
        text = f"in use, {state.percent:.0f} % left; processors and GPUs run slower on it"
        return Diagnosis.slow(text, "plug the machine into the mains", facts)
    return Diagnosis.ok("on mains" if plugged else "present; whether it is in use is unknown", facts)


def check_disk(subject: Subject) -> Diagnosis:
    """Of the largest of a model's files if it is large enough, else of a file in the temporary folder."""
    from ernie_local.machine.disk import find_storage, measure_disk, temporary_file

    found = subject.model_files
    paths = found.paths if isinstance(found, WeightFiles) else []
    large = [path for path in paths if path.stat().st_size >= _FILE_BYTES]
    place = max(large, key=lambda path: path.stat().st_size, default=subject.temporary_folder)
    storage, free = find_storage(place), psutil.disk_usage(str(place)).free
    facts: dict[str, object] = {
        "of_model": bool(large),
        "kind": storage.kind,
        "file_system": storage.file_system,
        "free_bytes": free,
        "page_bytes": None,
        "bytes_per_second": None,
        "is_direct": None,
    }
    whose = "the model's" if large else "the temporary folder's"
    try:
        with nullcontext(place) if large else temporary_file(place, _FILE_BYTES) as path:
            measured = measure_disk(path, _PAGE_BYTES, _DISK_SECONDS)
    except ErnieLocalError as error:
        return Diagnosis.slow(f"{whose} cannot be timed: {error.why}", error.hint, facts)
    except RuntimeError as error:  # no thread can be started
        limits = "raise the limit of processes (ulimit -u, pids.max) or of addresses (ulimit -v)"
        return Diagnosis.slow(f"{whose} cannot be timed: {error}", limits, facts)
    speed = measured.speed.median
    facts |= {"page_bytes": _PAGE_BYTES, "bytes_per_second": speed, "is_direct": measured.is_direct}
    kind = _STORAGE_KINDS[storage.kind] + ("" if storage.file_system is None else f" ({storage.file_system})")
    text = f"{whose}: {speed / 1e9:.2f} GB/s at pages of experts, {kind}, {format_bytes(free)} free"
    fix = _fix_disk(storage, speed, free)
    return Diagnosis.ok(text, facts) if fix is None else Diagnosis.slow(text, fix, facts)


def check_checkpoint(subject: Subject) -> Diagnosis | None:
    """Config, headers, sizes and tokenizer, as loading looks at them; no weight is read."""
    model, found = subject.model, subject.model_files
    if model is None:
        return None
    facts: dict[str, object] = {"complete": False, "bytes": None, "tensors": None, "files": None}
    if found is None:
        text = f"{model} is not looked for: that could download it"
        return Diagnosis.slow(text, "name the directory that it lies in", facts)
    if isinstance(found, ModelUnusable):
        return Diagnosis.fails(f"{found.what}: {found.why}", found.hint, facts)
    num_files = len(found.paths)
    facts |= {"complete": True, "bytes": found.num_bytes, "tensors": found.num_tensors, "files": num_files}
    text = (
        f"{found.num_tensors} tensors, {format_bytes(found.num_bytes)} in {num_files} files, complete "
        "(by headers and sizes; `ernie-local verify` reads every byte)"
    )
    return Diagnosis.ok(text, facts)


def check_profile(subject: Subject) -> Diagnosis:
    """Slow for a profile that cannot be used, ok where there is none."""
    path, stored = subject.profile_path, subject.stored_profile
    facts: dict[str, object] = {"present": path.exists(), "date": None, "difference": None}
    measure = "run `ernie-local bench`"
    if isinstance(stored, InputUnreadable):
        return Diagnosis.slow(f"cannot be read: {stored.why}", measure, facts)
    profile, difference = stored
    if profile is None:
        return Diagnosis.ok("this machine was not measured yet (ernie-local bench)", facts)
    facts |= {"date": profile.date, "difference": difference}
    if difference is not None:
        return Diagnosis.slow(f"of another machine: {difference}", measure, facts)
    return Diagnosis.ok(profile.summary, facts)


def _fix_disk(storage: Storage, speed: float, free: int) -> str | None:
    if speed < _SLOW_BYTES_PER_SECOND:
        is_old = storage.kind in ("network", "rotating")
        better = "a solid-state disk of this machine" if is_old else "a faster disk"
        return f"keep the model on {better}, or give it enough memory: paging waits for this disk"
    if free < _LITTLE_SPACE:
        return f"free some space, to have {format_bytes(_LITTLE_SPACE)}"
    return None


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
