"""The check of CUDA, as PyTorch tells it. Nothing is computed on a device here."""

from __future__ import annotations

import warnings

from ernie_local.doctor.finding import Finding

NAME = "cuda"


def check() -> Finding:
    """Ok without a device, which nothing needs; slow where PyTorch complains of the one that is there."""
    import torch

    built_for = torch.version.cuda
    devices: list[dict[str, object]] = []
    facts: dict[str, object] = {"built_for": built_for, "is_available": False, "devices": devices}
    # PyTorch tells of a driver that is too old, or of a device that does not start, in a warning.
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available and complaints:
        return _unusable(str(complaints[0].message), facts)
    if not is_available:
        reason = "this PyTorch is built without CUDA" if built_for is None else "no CUDA device"
        return Finding(NAME, "ok", f"not used: {reason}", None, facts)
    try:
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            devices.append({"name": device.name, "total_bytes": device.total_memory})
    except RuntimeError as error:
        return _unusable(str(error), facts)
    facts["is_available"] = True
    names = ", ".join(str(device["name"]) for device in devices)
    return Finding(NAME, "ok", f"CUDA {built_for}: {names}; used only with --device cuda", None, facts)


def _unusable(reason: str, facts: dict[str, object]) -> Finding:
    fix = "see whether `nvidia-smi` works; update the driver, or install a PyTorch built for it"
    return Finding(NAME, "slow", f"not used: {reason}", fix, facts)
