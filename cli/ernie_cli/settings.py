"""Reads what is set outside of the command line: environment variables, and the stored profile."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.planner.profile import MachineProfile

ISA_VARIABLE, PASSWORD_VARIABLE = "ERNIE_LOCAL_ISA", "ERNIE_LOCAL_PASSWORD"
API_KEY_VARIABLE = "ERNIE_LOCAL_API_KEY"

# The one table of environment variables that ernie-local's commands read.
ENVIRONMENT: Mapping[str, str] = {
    ISA_VARIABLE: "instruction set of the CPU kernels, such as 'avx2'; 'ernie-local doctor' lists them",
    PASSWORD_VARIABLE: "in place of '--password', which other users of the machine can see",
    API_KEY_VARIABLE: "in place of '--api-key' of 'serve'",
    "NO_COLOR": "set to anything: no colour and no dimmed text",
    "TERM": "'dumb': no colour, no dimmed text, and no line editing",
    "COLUMNS": "the width of tables, in place of that of the terminal",
    "XDG_CONFIG_HOME": "the folder in which 'bench' stores the machine's profile, in place of ~/.config",
    "APPDATA": "the same on Windows",
    "XDG_STATE_HOME": "the folder in which 'chat' keeps what was typed, in place of ~/.local/state",
    "LOCALAPPDATA": "the same on Windows",
}


def table_columns() -> int:
    """How wide a table may be: as COLUMNS says, else as the terminal of stdout; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def terminal_is_plain() -> bool:
    """Whether the terminal is declared unable to do more than print lines."""
    return os.environ.get("TERM") == "dumb"


def forced_instruction_set() -> str | None:
    """The instruction set that the CPU kernels must use; None leaves the choice to them."""
    return os.environ.get(ISA_VARIABLE) or None


def use_forced_instruction_set() -> None:
    """Let the CPU kernels of this process use what ERNIE_LOCAL_ISA names; imports nothing without it.

    Raises UsageError for a name that means nothing, DoesNotFit for what cannot run here.
    """
    name = forced_instruction_set()
    if name is not None:
        from ernie_local.kernels.native import choose_instruction_set

        choose_instruction_set(name, ISA_VARIABLE)


def profile_path(platform: str = sys.platform) -> Path:
    """Where the profile of this machine is: in the user's own folder for settings."""
    if platform == "win32":
        folder = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    else:
        folder = _xdg_folder("XDG_CONFIG_HOME", ".config")
    return folder / "ernie-local" / "machine.json"


def history_path(platform: str = sys.platform) -> Path:
    """Where the lines that were typed in chats are kept: in the user's own folder for states."""
    if platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        folder = _xdg_folder("XDG_STATE_HOME", ".local/state")
    return folder / "ernie-local" / "history"


def _xdg_folder(variable: str, default: str) -> Path:
    named = Path(os.environ.get(variable) or "")
    # The XDG Base Directory Specification says to ignore relative paths.
    return named if named.is_absolute() else Path.home() / default


def efficiency_cores(threads: int | None) -> bool | None:
    """Whether `bench` measured that they help; None where `threads` is given or cores are of one kind."""
    from ernie_local.planner.cpu_limits import CpuLimits

    if threads is not None or CpuLimits.of_machine().kinds is None:
        return None
    profile = stored_profile()
    return None if profile is None else profile.efficiency_cores


def stored_profile() -> MachineProfile | None:
    """What `bench` measured on this hardware; None if it measured none, or another machine's."""
    path = profile_path()
    if not path.exists():
        return None
    from ernie_local.machine.hardware import own_profile

    return own_profile(path)
