"""The check of CUDA: whether PyTorch, its CUDA and the driver belong together. Nothing is computed there.

Owns which driver a CUDA needs at least. What the GPU itself can do is gpu.py's.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from ernie_local.doctor.finding import Finding
from ernie_local.machine.nvidia_smi import GpuReport

NAME = "cuda"
# By CUDA's major version, on Linux: within one, newer minor versions run on older drivers ("CUDA
# Compatibility", table "Minor Version Compatibility").
_LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}


def check(gpus: Sequence[GpuReport] | None) -> Finding:
    """Ok without a device, which nothing needs; slow where a GPU is there that PyTorch cannot use.

    GPUs: what the driver's own tool tells; None where there is none.
    """
    import torch

    built_for = torch.version.cuda
    driver = next((gpu.driver_version for gpu in gpus or () if gpu.driver_version), None)
    devices: list[dict[str, object]] = []
    facts: dict[str, object] = {
        "built_for": built_for,
        "driver": driver,
        "is_available": False,
        "devices": devices,
    }
    # PyTorch tells of a driver that is too old, or of a device that does not start, in a warning.
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available:
        return _not_available(built_for, driver, [str(each.message) for each in complaints], facts, gpus)
    try:
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            devices.append({"name": device.name, "total_bytes": device.total_memory})
    except RuntimeError as error:
        return _unusable(str(error), facts)
    facts["is_available"] = True
    names = ", ".join(str(device["name"]) for device in devices)
    shown = f"CUDA {built_for}" + (f", driver {driver}" if driver else "")
    return Finding(NAME, "ok", f"{shown}: {names}; used only where the device is cuda", None, facts)


def _not_available(
    built_for: str | None,
    driver: str | None,
    complaints: Sequence[str],
    facts: dict[str, object],
    gpus: Sequence[GpuReport] | None,
) -> Finding:
    if gpus and built_for is None:
        return Finding(
            NAME,
            "slow",
            f"not used: {gpus[0].name} is there, this PyTorch is built without CUDA",
            "install a PyTorch with CUDA: https://pytorch.org/get-started/locally",
            facts,
        )
    least = least_driver(built_for)
    if driver is not None and least is not None and _major(driver) < least:
        return Finding(
            NAME,
            "slow",
            f"not used: driver {driver}, CUDA {built_for} needs {least} or newer",
            f"update the driver to {least} or newer, or install a PyTorch built for an older CUDA",
            facts,
        )
    if complaints:
        return _unusable(complaints[0], facts)
    if gpus:
        return _unusable(f"{gpus[0].name} is there, PyTorch for CUDA {built_for} does not see it", facts)
    reason = "this PyTorch is built without CUDA" if built_for is None else "no CUDA device"
    return Finding(NAME, "ok", f"not used: {reason}", None, facts)


def least_driver(built_for: str | None) -> int | None:
    """Major version of the oldest driver for this CUDA, None where that is not known."""
    return None if built_for is None else _LEAST_DRIVERS.get(_major(built_for))


def _major(version: str) -> int:
    match = re.match(r"[0-9]{1,6}", version, re.ASCII)
    return int(match[0]) if match else 0


def _unusable(reason: str, facts: dict[str, object]) -> Finding:
    fix = "see whether `nvidia-smi` works; update the driver, or install a PyTorch built for it"
    return Finding(NAME, "slow", f"not used: {reason}", fix, facts)
