"""The check of the battery: on it, processors and GPUs run slower."""

from __future__ import annotations

import psutil

from ernie_local.doctor.finding import Finding

NAME = "battery"


def check() -> Finding:
    """Slow on battery; ok on mains, and where there is none or the system does not tell."""
    # Some systems have no such function, some no battery to tell of.
    sensors = getattr(psutil, "sensors_battery", None)
    state = None if sensors is None else sensors()
    plugged = None if state is None else state.power_plugged
    facts = {"present": state is not None, "power_plugged": plugged}
    if state is None:
        return Finding(NAME, "ok", "none", None, facts)
    if plugged is False:
        return Finding(
            NAME, "slow", f"in use, {state.percent:.0f} % left", "plug the machine into the mains", facts
        )
    return Finding(
        NAME, "ok", "on mains" if plugged else "there; whether it is in use is not told", None, facts
    )
