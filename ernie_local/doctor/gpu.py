"""Checks the GPUs that the driver names: what they compute, their memory, their link, page-locking."""

from __future__ import annotations

from ernie_local.doctor.check import Check, Examination, Outcome
from ernie_local.kernels.gpu import LEAST_CAPABILITY
from ernie_local.machine.hardware import GpuStatus
from ernie_local.sizes import GIB, format_bytes

_BFLOAT16_CAPABILITY = (8, 0)  # below it there is no arithmetic in bfloat16
# A GPU that shows a desktop has some of its memory in use, which is normal.
_HELD_SHARE = 0.25
# Bytes a second of one lane, by generation of PCI Express, after its line code.
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_LEAST_SHARE = 0.5  # of what the lanes could carry
# With less page-locked memory, experts on their way to the GPU are copied twice.
_LITTLE_LOCKED = GIB


def _check_gpu(examination: Examination) -> Outcome:
    """Ok without a GPU; slow where one is too old for Triton, or other programs use much of its memory."""
    gpus = examination.gpus
    facts: dict[str, object] = {
        "gpus": [
            {
                "name": gpu.name,
                "compute_capability": None
                if gpu.compute_capability is None
                else ".".join(map(str, gpu.compute_capability)),
                "total_bytes": gpu.total_bytes,
                "free_bytes": gpu.free_bytes,
                "processes": [{"name": one.name, "bytes": one.bytes} for one in gpu.processes],
            }
            for gpu in gpus or ()
        ]
    }
    if not gpus:
        reason = "no NVIDIA driver answers" if gpus is None else "the driver names none"
        return Outcome.ok(f"none: {reason}", facts)
    text = "; ".join(_describe_gpu(gpu) for gpu in gpus)
    for gpu in gpus:
        fix = _fix_gpu(gpu)
        if fix is not None:
            return Outcome.slow(text, fix, facts)
    return Outcome.ok(text, facts)


def _describe_gpu(gpu: GpuStatus) -> str:
    text = gpu.name
    if gpu.compute_capability is not None:
        text += f", compute capability {'.'.join(map(str, gpu.compute_capability))}"
        if gpu.compute_capability < LEAST_CAPABILITY:
            text += " (no Triton, no bfloat16)"
        elif gpu.compute_capability < _BFLOAT16_CAPABILITY:
            text += " (no bfloat16: float16 in its place)"
    if gpu.total_bytes is not None and gpu.free_bytes is not None:
        text += f", {format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.total_bytes)}"
    named = [
        one.name if one.bytes is None else f"{one.name} {format_bytes(one.bytes)}" for one in gpu.processes
    ]
    return text + (f" (held by {', '.join(named)})" if named else "")


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


def _check_link(examination: Examination) -> Outcome:
    """Of the first GPU. Slow where it uses fewer lanes than it could, or carries half of what they should."""
    gpu, profile = examination.gpus[0] if examination.gpus else None, examination.own_profile
    rates = None if profile is None else profile.rates.gpu
    measured = None if rates is None else rates.link_bytes_per_second
    facts: dict[str, object] = {
        "generation": None if gpu is None else gpu.link_generation,
        "width": None if gpu is None else gpu.link_width,
        "width_most": None if gpu is None else gpu.link_width_most,
        "bytes_per_second": None if gpu is None else measured,
    }
    if gpu is None:
        return Outcome.ok("no GPU", facts)
    text = _describe_link(gpu, measured)
    if gpu.link_width is not None and gpu.link_width < (gpu.link_width_most or 0):
        fix = "put the GPU into the slot with all lanes, next to the processor, without an extension cable"
        return Outcome.slow(text, fix, facts)
    lane = _LANE.get(gpu.link_generation or 0)
    if measured is not None and lane is not None and gpu.link_width is not None:
        expected = lane * gpu.link_width
        if measured < _LEAST_SHARE * expected:
            text += f", {expected / 1e9:.1f} possible"
            fix = "set the slot to its newest generation in the firmware, and run `ernie-local bench` again"
            return Outcome.slow(text, fix, facts)
    return Outcome.ok(text, facts)


def _describe_link(gpu: GpuStatus, measured: float | None) -> str:
    generation, width = (
        "unknown" if one is None else str(one) for one in (gpu.link_generation, gpu.link_width)
    )
    most = "" if gpu.link_width_most is None else f" of {gpu.link_width_most}"
    speed = "not measured (ernie-local bench)" if measured is None else f"{measured / 1e9:.1f} GB/s measured"
    return f"PCI Express generation {generation}, lanes {width}{most}, {speed}"


def _check_pinned(_: Examination) -> Outcome:
    """Slow where there is a GPU and its driver locks little; without a GPU nothing needs it."""
    import torch

    from ernie_local.machine.gpu import lock_limit, lockable_bytes

    limit = lock_limit()
    quota = lockable_bytes() if torch.cuda.is_available() else None
    facts = {"limit_bytes": limit, "quota_bytes": quota}
    shown = "no limit" if limit is None else f"limit {format_bytes(limit)}"
    if quota is None:
        return Outcome.ok(f"not needed without a GPU ({shown})", facts)
    text = f"the driver locks at least {format_bytes(quota)} ({shown})"
    if quota < _LITTLE_LOCKED:
        fix = "raise the limit of locked memory (ulimit -l unlimited); under WSL, memory= in .wslconfig"
        return Outcome.slow(text, fix, facts)
    return Outcome.ok(text, facts)


GPU = Check("gpu", _check_gpu)
LINK = Check("link", _check_link)
PINNED = Check("pinned", _check_pinned)
