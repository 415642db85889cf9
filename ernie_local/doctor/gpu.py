"""Checks GPUs, their memory and their link, and the software for them: CUDA, Triton, bitsandbytes."""

from __future__ import annotations

import re
import warnings
from importlib import metadata
from typing import Any

from ernie_local.doctor.check import Diagnosis, Subject
from ernie_local.kernels.gpu_capability import LEAST_CAPABILITY, multiplies_bfloat16
from ernie_local.machine.hardware import GpuStatus
from ernie_local.planner.free_memory import free_memory
from ernie_local.planner.gpus import last_pytorch
from ernie_local.sizes import GIB, MIB, format_bytes

# By CUDA's major version, on Linux: within one, newer minor versions run on older drivers ("CUDA
# Compatibility", table "Minor Version Compatibility").
_LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
_TRITON_PACKAGES = ("triton", "triton-windows")
# The last version with CUDA 12.6, which is the last CUDA build for Pascal and Volta.
_BUILD_FOR_OLD = "install torch<2.15 built for CUDA 12.6, as pytorch.org's page of previous versions says"
# A GPU that shows a desktop has some of its memory in use, which is normal.
_HELD_SHARE = 0.25
# Bytes a second of one lane, by generation of PCI Express, after its line code.
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_LEAST_SHARE = 0.5  # of what the lanes could carry
# With less page-locked memory, experts on their way to the GPU are copied twice.
_LITTLE_LOCKED = GIB
# A driver that locks this much in one piece will lock more; more is not tried.
_MOST_LOCKED = 4 * GIB
_FIRST_LOCKED = 64 * MIB


def check_cuda(subject: Subject) -> Diagnosis:
    """Ok without a device, which nothing needs; slow where PyTorch cannot use a GPU that is there."""
    import torch

    gpus = subject.gpus or ()
    built_for = torch.version.cuda
    driver = next((gpu.driver_version for gpu in gpus if gpu.driver_version), None)
    facts: dict[str, Any] = {"built_for": built_for, "driver": driver, "is_available": False, "devices": []}
    # PyTorch tells of a driver that is too old, or of a device that does not start, in a warning.
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if is_available:
        try:
            for index in range(torch.cuda.device_count()):
                device = torch.cuda.get_device_properties(index)
                facts["devices"].append({"name": device.name, "total_bytes": device.total_memory})
        except RuntimeError as error:
            return _unusable_cuda(str(error), facts)
        facts["is_available"] = True
        unserved = next((gpu for gpu in gpus if _is_unserved(gpu, torch.cuda.get_arch_list())), None)
        if unserved is not None:
            text = f"not usable: PyTorch {torch.__version__} has no code for {_describe_gpu(unserved)}"
            return Diagnosis.slow(text, _BUILD_FOR_OLD, facts)
        names = ", ".join(device["name"] for device in facts["devices"])
        shown = f"CUDA {built_for}" + (f", driver {driver}" if driver else "")
        return Diagnosis.ok(f"{shown}: {names}; used only where the device is cuda", facts)
    if gpus and built_for is None:
        text = f"not used: {gpus[0].name} is there, this PyTorch is built without CUDA"
        is_old = last_pytorch(gpus[0].compute_capability) is not None
        newest = "install a PyTorch with CUDA: https://pytorch.org/get-started/locally"
        return Diagnosis.slow(text, _BUILD_FOR_OLD if is_old else newest, facts)
    least = None if built_for is None else _LEAST_DRIVERS.get(_major(built_for))
    if driver is not None and least is not None and _major(driver) < least:
        return Diagnosis.slow(
            f"not used: driver {driver}, CUDA {built_for} needs {least} or newer",
            f"update the driver to {least} or newer, or install a PyTorch built for an older CUDA",
            facts,
        )
    if complaints:
        return _unusable_cuda(str(complaints[0].message), facts)
    if gpus:
        return _unusable_cuda(f"{gpus[0].name} is there, PyTorch for CUDA {built_for} does not see it", facts)
    reason = "this PyTorch is built without CUDA" if built_for is None else "no CUDA device"
    return Diagnosis.ok(f"not used: {reason}", facts)


def check_gpus(subject: Subject) -> Diagnosis:
    """Ok without a GPU; slow where one is too old for Triton, or other programs use much of its memory."""
    gpus = subject.gpus
    facts = {
        "gpus": [
            {
                "name": gpu.name,
                "compute_capability": _dotted(gpu.compute_capability),
                "last_pytorch": last_pytorch(gpu.compute_capability),
                "total_bytes": gpu.total_bytes,
                "free_bytes": gpu.free_bytes,
                "processes": [{"name": one.name, "bytes": one.bytes} for one in gpu.processes],
            }
            for gpu in gpus or ()
        ]
    }
    if not gpus:
        reason = "no NVIDIA driver answers" if gpus is None else "the driver names none"
        return Diagnosis.ok(f"none: {reason}", facts)
    text = "; ".join(map(_describe_gpu, gpus))
    fix = next(filter(None, map(_fix_gpu, gpus)), None)
    return Diagnosis.ok(text, facts) if fix is None else Diagnosis.slow(text, fix, facts)


def check_triton(subject: Subject) -> Diagnosis:
    """Slow where there is a GPU on which the Triton kernels cannot run. Triton itself is not imported."""
    from ernie_local.kernels.gpu import triton_absence

    gpus = subject.gpus
    version = next(filter(None, map(_version, _TRITON_PACKAGES)), None)
    facts = {"version": version, "fallback": None}
    if not gpus:
        absent = "absent, and only a GPU would use it"
        return Diagnosis.ok(absent if version is None else f"Triton {version}, without a GPU", facts)
    # The newest GPU decides; an unknown capability counts as sufficient.
    absence = triton_absence(max(gpu.compute_capability or LEAST_CAPABILITY for gpu in gpus))
    if absence is None:
        return Diagnosis.ok(f"Triton {version}", facts)
    text = f"not used, plain PyTorch would compute on the GPU: {absence.why}"
    return Diagnosis.slow(text, absence.hint, facts | {"fallback": "torch"})


def check_nf4(subject: Subject) -> Diagnosis:
    """Slow where there is a GPU but no bitsandbytes. Whether it runs there is found out by loading."""
    from ernie_local.kernels.nf4 import nf4_package_absence

    absence = nf4_package_absence()
    version = None if absence is not None else metadata.version("bitsandbytes")
    facts = {"bitsandbytes": version, "fallback": None}
    if not subject.gpus:
        found = "absent" if version is None else f"bitsandbytes {version}"
        return Diagnosis.ok(f"{found}; only nf4 experts on a GPU would use it", facts)
    if absence is None:
        return Diagnosis.ok(f"on the GPU by bitsandbytes {version}, tried when loaded", facts)
    text = f"plain PyTorch would unpack nf4 experts on the GPU: {absence.why}"
    return Diagnosis.slow(text, absence.hint, facts | {"fallback": "torch"})


def check_link(subject: Subject) -> Diagnosis:
    """Of the first GPU. Slow where it uses fewer lanes than it could, or carries half of what they should."""
    profile = subject.own_profile
    if not subject.gpus:
        facts = dict.fromkeys(("generation", "width", "width_most", "bytes_per_second"))
        return Diagnosis.ok("no GPU", facts)
    gpu = subject.gpus[0]
    generation, width, most = gpu.link_generation, gpu.link_width, gpu.link_width_most
    rates = None if profile is None else profile.rates.gpu
    measured = None if rates is None else rates.link_bytes_per_second
    facts = {"generation": generation, "width": width, "width_most": most, "bytes_per_second": measured}
    speed = "not measured (ernie-local bench)" if measured is None else f"{measured / 1e9:.1f} GB/s measured"
    lanes = ("unknown" if width is None else str(width)) + ("" if most is None else f" of {most}")
    text = f"PCI Express generation {generation or 'unknown'}, lanes {lanes}, {speed}"
    if width is not None and width < (most or 0):
        fix = "put the GPU into the slot with all lanes, next to the processor, without an extension cable"
        return Diagnosis.slow(text, fix, facts)
    lane = _LANE.get(generation or 0)
    if measured is not None and lane is not None and width is not None:
        expected = lane * width
        if measured < _LEAST_SHARE * expected:
            text += f", {expected / 1e9:.1f} possible"
            fix = "set the slot to its newest generation in the firmware, and run `ernie-local bench` again"
            return Diagnosis.slow(text, fix, facts)
    return Diagnosis.ok(text, facts)


def check_locked_memory(_: Subject) -> Diagnosis:
    """Slow where there is a GPU and its driver locks little; without a GPU nothing needs it."""
    import torch

    limit = lock_limit()
    quota = lockable_bytes() if torch.cuda.is_available() else None
    facts = {"limit_bytes": limit, "quota_bytes": quota}
    shown = "no limit" if limit is None else f"limit {format_bytes(limit)}"
    if quota is None:
        return Diagnosis.ok(f"not needed without a GPU ({shown})", facts)
    text = f"the driver locks at least {format_bytes(quota)} ({shown})"
    if quota < _LITTLE_LOCKED:
        fix = "raise the limit of locked memory (ulimit -l unlimited); under WSL, memory= in .wslconfig"
        return Diagnosis.slow(text, fix, facts)
    return Diagnosis.ok(text, facts)


def lock_limit() -> int | None:
    """Bytes that this process may lock; None where there is no limit, or the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft in (resource.RLIM_INFINITY, -1) else soft


def lockable_bytes(free: int | None = None) -> int:
    """Bytes that the GPU's driver page-locks in one piece, at most 4 GiB or a fourth of the free memory.

    Only with CUDA. Found by asking for more each time; everything is given back. free: None to look.
    """
    import torch

    most = min(_MOST_LOCKED, (free_memory() if free is None else free) // 4)
    given, wanted = 0, min(_FIRST_LOCKED, most)
    while wanted > given:
        try:
            torch.empty(wanted, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the driver refuses
            break
        given, wanted = wanted, min(2 * wanted, most)
    return given


def _unusable_cuda(reason: str, facts: dict[str, Any]) -> Diagnosis:
    fix = "see whether the NVIDIA driver works; update it, or install a PyTorch built for it"
    return Diagnosis.slow(f"not used: {reason}", fix, facts)


def _major(version: str) -> int:
    match = re.match(r"[0-9]{1,6}", version, re.ASCII)
    return int(match[0]) if match else 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dotted(capability: tuple[int, int] | None) -> str | None:
    return None if capability is None else ".".join(map(str, capability))


def _describe_gpu(gpu: GpuStatus) -> str:
    text = gpu.name
    if gpu.compute_capability is not None:
        text += f", compute capability {_dotted(gpu.compute_capability)}"
        if gpu.compute_capability < LEAST_CAPABILITY:
            text += " (no Triton, no bfloat16)"
        elif not multiplies_bfloat16(gpu.compute_capability):
            text += " (no bfloat16: float16 in its place)"
        if (last := last_pytorch(gpu.compute_capability)) is not None:
            text += f" (PyTorch {last} is the last version that is built for it)"
    if gpu.total_bytes is not None and gpu.free_bytes is not None:
        text += f", {format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.total_bytes)}"
    holders = (
        one.name + ("" if one.bytes is None else f" {format_bytes(one.bytes)}") for one in gpu.processes
    )
    return text + (f" (held by {', '.join(holders)})" if gpu.processes else "")


def _is_unserved(gpu: GpuStatus, built_for: list[str]) -> bool:
    """Whether a PyTorch built for these (sm_60, sm_75) has no code for an old GPU."""
    if last_pytorch(gpu.compute_capability) is None or gpu.compute_capability is None:
        return False
    major, minor = gpu.compute_capability
    return not any(f"sm_{major}{lower}" in built_for for lower in range(minor + 1))


def _fix_gpu(gpu: GpuStatus) -> str | None:
    if gpu.compute_capability is not None and gpu.compute_capability < LEAST_CAPABILITY:
        return "compute on the processor, or use a GPU of capability 7.0 or more"
    if gpu.total_bytes is not None and gpu.free_bytes is not None:
        held = gpu.total_bytes - gpu.free_bytes
        if held > _HELD_SHARE * gpu.total_bytes:
            return (
                f"close what holds {format_bytes(held)} of the GPU's memory, or connect the screen elsewhere"
            )
    return None
