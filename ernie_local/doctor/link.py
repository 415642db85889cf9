"""The check of the link between memory and GPU: its lanes, and what it was measured to carry."""

from __future__ import annotations

from collections.abc import Sequence

from ernie_local.doctor.finding import Finding
from ernie_local.machine.nvidia_smi import GpuReport
from ernie_local.planner.profile import MachineProfile

NAME = "link"
# Bytes a second of one lane, by generation of PCI Express, behind its line code.
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_LEAST_SHARE = 0.5  # of what the lanes could carry


def check(gpus: Sequence[GpuReport] | None, profile: MachineProfile | None) -> Finding:
    """Of the first GPU. Slow where it has fewer lanes than it could, or carries half of what they should.

    profile: of this machine, None where nothing was measured.
    """
    gpu = gpus[0] if gpus else None
    rates = None if profile is None else profile.rates.gpu
    measured = None if rates is None else rates.link_bytes_per_second
    facts: dict[str, object] = {
        "generation": None if gpu is None else gpu.link_generation,
        "width": None if gpu is None else gpu.link_width,
        "width_most": None if gpu is None else gpu.link_width_most,
        "bytes_per_second": None if gpu is None else measured,
    }
    if gpu is None:
        return Finding(NAME, "ok", "no GPU", None, facts)
    text = _describe(gpu, measured)
    if gpu.link_width is not None and gpu.link_width < (gpu.link_width_most or 0):
        fix = "put the GPU into the slot with all lanes, next to the processor, without an extension cable"
        return Finding(NAME, "slow", text, fix, facts)
    lane = _LANE.get(gpu.link_generation or 0)
    if measured is not None and lane is not None and gpu.link_width is not None:
        expected = lane * gpu.link_width
        if measured < _LEAST_SHARE * expected:
            text += f", {expected / 1e9:.1f} possible"
            fix = "set the slot to its newest generation in the firmware, and run `ernie-local bench` again"
            return Finding(NAME, "slow", text, fix, facts)
    return Finding(NAME, "ok", text, None, facts)


def _describe(gpu: GpuReport, measured: float | None) -> str:
    generation, width = (
        "unknown" if one is None else str(one) for one in (gpu.link_generation, gpu.link_width)
    )
    most = "" if gpu.link_width_most is None else f" of {gpu.link_width_most}"
    speed = "not measured (ernie-local bench)" if measured is None else f"{measured / 1e9:.1f} GB/s measured"
    return f"PCI Express generation {generation}, lanes {width}{most}, {speed}"
