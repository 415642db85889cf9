"""GPUs and profiles that tests of the doctor make up."""

from __future__ import annotations

import dataclasses
from typing import Any

from ernie_local.machine.hardware import GpuStatus
from ernie_local.planner.profile import HardwareKey, MachineProfile
from ernie_local.planner.rates import GpuRates, Rates

ONE = GpuStatus("GPU 9000", "550.1", (8, 6), 12 << 30, 11 << 30, 4, 16, 16, None, ())


def one(**changes: Any) -> tuple[GpuStatus, ...]:
    return (dataclasses.replace(ONE, **changes),)


def profile(link_rate: float) -> MachineProfile:
    rates = Rates(1e9, 1e10, 1e11, 1e-3, 1e-4, gpu=GpuRates(3e11, link_rate, 1e13))
    return MachineProfile(HardwareKey("cpu", 2, 1 << 34, "GPU 9000"), "2026-11-27", rates, rates, {})
