"""The profile that `bench` has stored of this machine, for commands that predict. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_cli.console import profile_path

if TYPE_CHECKING:
    from ernie_local.planner.profile import MachineProfile


def stored_profile() -> MachineProfile | None:
    """What `bench` measured on this hardware; None where it was another's, or none."""
    path = profile_path()
    if not path.exists():
        return None
    from ernie_local.machine.hardware import own_profile

    return own_profile(path)
