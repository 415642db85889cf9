"""Writes the zip of `doctor --bundle`: what was found, for a person who helps.

Removes what is private: paths, names of people, machines and their programs, names of models. The environment
is never read for it.
"""

from __future__ import annotations

import getpass
import json
import platform
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ernie_cli.doctor_result import DoctorResult
from ernie_cli.json_object import finished
from ernie_local.doctor import Subject
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import place_of_new_file, written_whole
from ernie_local.planner.profile import profile_to_json, read_profile

# A path ends at these; one with a blank in it must be known by name.
_REST = r"[^\s,;:()'\"`]"
# After a letter or a digit it is no path: "GB/s", "tokens/s".
_PATH = re.compile(rf"(?<![\w.])(?:[A-Za-z]:[\\/]|[\\/~]){_REST}+")
_PRIVATE = "<private>"
# A name of two letters is part of half of all words.
_SHORTEST_NAME = 3


def check_path(path: Path) -> None:
    """Raise UsageError where no file can be written, or another kind of file would be lost."""
    try:
        folder = place_of_new_file(path).parent
        reason = "" if folder.is_dir() else f"{folder} is not a directory"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UsageError(
            f"cannot write a bundle to {path}",
            reason,
            "give the path of a file, such as report.zip",
        )
    if path.exists() and not zipfile.is_zipfile(path):
        raise UsageError(
            f"will not write a bundle over {path}",
            "that file holds something else",
            "give another path, such as report.zip",
        )


def write_bundle(path: Path, result: DoctorResult, subject: Subject) -> None:
    """Write the zip, whole or not at all: doctor.json, packages.json, platform.json and machine.json."""
    private = _private_names(result, subject)
    shown = {**finished("doctor", result, None), "ok": result.verdict != "fails"}
    members = {
        "doctor.json": shown,
        "packages.json": _packages(),
        "platform.json": _platform(),
        "machine.json": _profile(subject),
    }
    with (
        written_whole(path, "the bundle") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped,
    ):
        for name, value in members.items():
            zipped.writestr(name, json.dumps(without(value, private), indent=1, allow_nan=False) + "\n")


def without(value: object, private: Sequence[str]) -> object:
    """`value`, of JSON, with all paths and all these names taken out of its texts."""
    if isinstance(value, Mapping):
        return {name: without(one, private) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without(one, private) for one in value]
    if not isinstance(value, str):
        return value
    for name in sorted(private, key=len, reverse=True):
        value = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)(?:[\\/]{_REST}*)?", _PRIVATE, value)
    return _PATH.sub(_PRIVATE, value)


def _private_names(result: DoctorResult, subject: Subject) -> list[str]:
    names = [str(Path.home()), str(Path.cwd()), str(subject.temporary_folder), str(subject.profile_path)]
    names += [platform.node(), platform.node().partition(".")[0], Path.home().name]
    if subject.model is not None and subject.model != "nano":
        path = Path(subject.model).expanduser()
        names += [subject.model, str(path), str(path.resolve()), path.name]
    with suppress(OSError, KeyError, ImportError):  # a container's user without a name
        names.append(getpass.getuser())
    facts: Any = {check.name: check.facts for check in result.checks}
    if "gpu" in facts:
        names += [process["name"] for gpu in facts["gpu"]["gpus"] for process in gpu["processes"]]
    return [name for name in names if len(name) >= _SHORTEST_NAME]


def _packages() -> dict[str, str | None]:
    """Versions of what ernie-local depends on, and of nothing else; None for what is not installed."""
    required: list[str] = []
    with suppress(metadata.PackageNotFoundError):  # a clone that is not installed
        required = metadata.requires("ernie-local") or []
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required}
    versions: dict[str, str | None] = dict.fromkeys(sorted(names | {"ernie-local", "triton", "torch"}))
    for name in versions:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _platform() -> dict[str, str]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "libc": " ".join(platform.libc_ver()).strip(),
    }


def _profile(subject: Subject) -> dict[str, object] | None:
    """Without the name of the model that was measured; None where there is no profile that can be read."""
    try:
        profile = read_profile(subject.profile_path)
    except InputUnreadable:
        return None  # the findings say so
    if profile is None:
        return None
    if profile.model is not None:
        profile = replace(profile, model=replace(profile.model, name="a model"))
    return profile_to_json(profile)
