"""The check of what `bench` has measured here: whether it is there, readable, and of this machine."""

from __future__ import annotations

from pathlib import Path

from ernie_local.doctor.finding import Finding
from ernie_local.errors import InputUnreadable
from ernie_local.machine.hardware import find_hardware
from ernie_local.planner.profile import MachineProfile, read_profile

NAME = "profile"
_MEASURE = "run `ernie-local bench`"


def check(path: Path) -> tuple[MachineProfile | None, Finding]:
    """The profile, where it is of this machine; slow for one that cannot be used, ok where there is none."""
    facts: dict[str, object] = {"present": path.exists(), "date": None, "difference": None}
    try:
        profile = read_profile(path)
    except InputUnreadable as error:
        return None, Finding(NAME, "slow", f"cannot be read: {error.why}", _MEASURE, facts)
    if profile is None:
        return None, Finding(NAME, "ok", "this machine was not measured yet (ernie-local bench)", None, facts)
    difference = profile.hardware.difference(find_hardware())
    facts |= {"date": profile.date, "difference": difference}
    if difference is not None:
        return None, Finding(NAME, "slow", f"of another machine: {difference}", _MEASURE, facts)
    return profile, Finding(NAME, "ok", profile.summary, None, facts)
