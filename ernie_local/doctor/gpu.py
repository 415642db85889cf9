"""The check of graphics GPUs, by the driver's own tool: what they can compute, and who has their memory."""

from __future__ import annotations

from collections.abc import Sequence

from ernie_local.doctor.finding import Finding
from ernie_local.kernels.triton_path import LEAST_CAPABILITY
from ernie_local.machine.nvidia_smi import GpuReport
from ernie_local.sizes import format_bytes

NAME = "gpu"
_BFLOAT16_CAPABILITY = (8, 0)  # below it there is no arithmetic in bfloat16
# A GPU that shows a desktop has some of its memory in use, and that is no reason to worry.
_HELD_SHARE = 0.25


def check(gpus: Sequence[GpuReport] | None) -> Finding:
    """Ok without a GPU; slow where one is too old for Triton, or others hold much of its memory."""
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
        reason = "no nvidia-smi that answers" if gpus is None else "nvidia-smi names none"
        return Finding(NAME, "ok", f"none: {reason}", None, facts)
    text = "; ".join(_describe(gpu) for gpu in gpus)
    for gpu in gpus:
        fix = _fix(gpu)
        if fix is not None:
            return Finding(NAME, "slow", text, fix, facts)
    return Finding(NAME, "ok", text, None, facts)


def _describe(gpu: GpuReport) -> str:
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


def _fix(gpu: GpuReport) -> str | None:
    if gpu.compute_capability is not None and gpu.compute_capability < LEAST_CAPABILITY:
        return "compute on the processor, or use a GPU of capability 7.0 or more"
    if gpu.total_bytes is not None and gpu.free_bytes is not None:
        held = gpu.total_bytes - gpu.free_bytes
        if held > _HELD_SHARE * gpu.total_bytes:
            return (
                f"close what holds {format_bytes(held)} of the GPU's memory, or connect the screen elsewhere"
            )
    return None
