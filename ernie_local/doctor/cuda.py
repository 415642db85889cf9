"""Checks the software for GPUs: PyTorch's CUDA and the driver, Triton, bitsandbytes. Nothing is computed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from importlib import metadata

from ernie_local.doctor.check import Check, Examination, Outcome
from ernie_local.machine.hardware import GpuStatus

# By CUDA's major version, on Linux: within one, newer minor versions run on older drivers ("CUDA
# Compatibility", table "Minor Version Compatibility").
_LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
_TRITON_PACKAGES = ("triton", "triton-windows")


def _check_cuda(examination: Examination) -> Outcome:
    """Ok without a device, which nothing needs; slow where PyTorch cannot use a GPU that is there."""
    import torch

    gpus = examination.gpus
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
    return Outcome.ok(f"{shown}: {names}; used only where the device is cuda", facts)


def _not_available(
    built_for: str | None,
    driver: str | None,
    complaints: Sequence[str],
    facts: dict[str, object],
    gpus: Sequence[GpuStatus] | None,
) -> Outcome:
    if gpus and built_for is None:
        return Outcome.slow(
            f"not used: {gpus[0].name} is there, this PyTorch is built without CUDA",
            "install a PyTorch with CUDA: https://pytorch.org/get-started/locally",
            facts,
        )
    least = _least_driver(built_for)
    if driver is not None and least is not None and _major(driver) < least:
        return Outcome.slow(
            f"not used: driver {driver}, CUDA {built_for} needs {least} or newer",
            f"update the driver to {least} or newer, or install a PyTorch built for an older CUDA",
            facts,
        )
    if complaints:
        return _unusable(complaints[0], facts)
    if gpus:
        return _unusable(f"{gpus[0].name} is there, PyTorch for CUDA {built_for} does not see it", facts)
    reason = "this PyTorch is built without CUDA" if built_for is None else "no CUDA device"
    return Outcome.ok(f"not used: {reason}", facts)


def _least_driver(built_for: str | None) -> int | None:
    """Major version of the oldest driver for this CUDA, None where that is not known."""
    return None if built_for is None else _LEAST_DRIVERS.get(_major(built_for))


def _major(version: str) -> int:
    match = re.match(r"[0-9]{1,6}", version, re.ASCII)
    return int(match[0]) if match else 0


def _unusable(reason: str, facts: dict[str, object]) -> Outcome:
    fix = "see whether the NVIDIA driver works; update it, or install a PyTorch built for it"
    return Outcome.slow(f"not used: {reason}", fix, facts)


def _check_triton(examination: Examination) -> Outcome:
    """Slow where there is a GPU on which the Triton kernels cannot run. Triton itself is not imported."""
    from ernie_local.kernels.gpu import LEAST_CAPABILITY, triton_absence

    gpus = examination.gpus
    version = next(filter(None, map(_version, _TRITON_PACKAGES)), None)
    if not gpus:
        text = (
            "absent, and only a GPU would use it" if version is None else f"Triton {version}, without a GPU"
        )
        return Outcome.ok(text, {"version": version, "fallback": None})
    # The newest GPU decides; an unknown capability counts as sufficient.
    capability = max(gpu.compute_capability or LEAST_CAPABILITY for gpu in gpus)
    absence = triton_absence(capability)
    facts = {"version": version, "fallback": None if absence is None else "torch"}
    if absence is None:
        return Outcome.ok(f"Triton {version}", facts)
    text = f"not used, plain PyTorch would compute on the GPU: {absence.why}"
    return Outcome.slow(text, absence.hint, facts)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_nf4(examination: Examination) -> Outcome:
    """Slow where there is a GPU but no bitsandbytes. Whether it runs there is found out by loading."""
    from ernie_local.kernels.nf4 import nf4_package_absence

    gpus = examination.gpus
    absence = nf4_package_absence()
    version = None if absence is not None else metadata.version("bitsandbytes")
    facts: dict[str, object] = {"bitsandbytes": version, "fallback": None}
    if not gpus:
        found = "absent" if version is None else f"bitsandbytes {version}"
        return Outcome.ok(f"{found}; only nf4 experts on a GPU would use it", facts)
    if absence is None:
        return Outcome.ok(f"on the GPU by bitsandbytes {version}, tried when loaded", facts)
    facts["fallback"] = "torch"
    text = f"plain PyTorch would unpack nf4 experts on the GPU: {absence.why}"
    return Outcome.slow(text, absence.hint, facts)


CUDA = Check("cuda", _check_cuda)
TRITON = Check("triton", _check_triton)
NF4 = Check("nf4", _check_nf4)
