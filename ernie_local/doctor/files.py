"""Checks the disk that experts are paged from, a model's files, and what `bench` stored of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ernie_local.doctor.check import Check, Examination, Outcome, WeightFiles
from ernie_local.errors import ErnieLocalError, InputUnreadable, ModelUnusable
from ernie_local.sizes import GIB, MIB, format_bytes

if TYPE_CHECKING:
    from ernie_local.machine.disk import Storage

# With half of a 4-bit model's experts in memory, a slower disk takes two seconds a token and more.
_SLOW_BYTES_PER_SECOND = 0.5e9
_LITTLE_SPACE = 2 * GIB
_SECONDS = 0.6
_FILE_BYTES = 48 * MIB  # no more: a slow disk takes seconds to write it


def _check_disk(examination: Examination) -> Outcome:
    """Of the largest of a model's files if it is large enough, else of a file in the temporary folder."""
    from ernie_local.machine.disk import find_storage

    found = examination.model_files
    paths = found.paths if isinstance(found, WeightFiles) else []
    largest = max(paths, key=lambda path: path.stat().st_size, default=None)
    is_model = largest is not None and largest.stat().st_size >= _FILE_BYTES
    place = largest if is_model and largest is not None else examination.subject.temporary_folder
    storage, free = find_storage(place), psutil.disk_usage(str(place)).free
    facts: dict[str, object] = {
        "of_model": is_model,
        "kind": storage.kind,
        "file_system": storage.file_system,
        "free_bytes": free,
        "page_bytes": None,
        "bytes_per_second": None,
        "is_direct": None,
    }
    whose = "the model's" if is_model else "the temporary folder's"
    try:
        speed, measured = _measure(place, is_model=is_model)
    except ErnieLocalError as error:
        return Outcome.slow(f"{whose} cannot be timed: {error.why}", error.hint, facts)
    facts |= measured
    text = f"{whose}: {speed / 1e9:.2f} GB/s at pages of experts, {_kind(storage)}, {format_bytes(free)} free"
    fix = _fix(storage, speed, free)
    return Outcome("ok" if fix is None else "slow", text, fix, facts)


def _measure(place: Path, *, is_model: bool) -> tuple[float, dict[str, object]]:
    from ernie_local.machine.disk import measure_disk, temporary_file

    page_bytes = _FILE_BYTES // 8
    if is_model:
        found = measure_disk(place, page_bytes, _SECONDS)
    else:
        with temporary_file(place, _FILE_BYTES) as path:
            found = measure_disk(path, page_bytes, _SECONDS)
    speed = found.speed.median
    return speed, {"page_bytes": page_bytes, "bytes_per_second": speed, "is_direct": found.is_direct}


def _kind(storage: Storage) -> str:
    words = {
        "network": "a disk of the network or of another system",
        "memory": "in memory, so this is not the speed of a disk",
        "rotating": "a rotating disk, as it says",  # virtual ones say so, too
        "solid": "a solid-state disk",
        "unknown": "a disk of unknown kind",
    }
    name = "" if storage.file_system is None else f" ({storage.file_system})"
    return words[storage.kind] + name


def _fix(storage: Storage, speed: float, free: int) -> str | None:
    if speed < _SLOW_BYTES_PER_SECOND:
        is_old = storage.kind in ("network", "rotating")
        better = "a solid-state disk of this machine" if is_old else "a faster disk"
        return f"keep the model on {better}, or give it enough memory: paging waits for this disk"
    if free < _LITTLE_SPACE:
        return f"free some space, to have {format_bytes(_LITTLE_SPACE)}"
    return None


def _check_checkpoint(examination: Examination) -> Outcome | None:
    """Config, headers, sizes and tokenizer, as loading looks at them; no weight is read."""
    model, found = examination.subject.model, examination.model_files
    if model is None:
        return None
    facts: dict[str, object] = {"complete": False, "bytes": None, "tensors": None, "files": None}
    if found is None:
        text = f"{model} is not looked for: that could download it"
        return Outcome.slow(text, "name the directory that it lies in", facts)
    if isinstance(found, ModelUnusable):
        return Outcome.fails(f"{found.what}: {found.why}", found.hint, facts)
    facts = {
        "complete": True,
        "bytes": found.num_bytes,
        "tensors": found.num_tensors,
        "files": len(found.paths),
    }
    text = (
        f"{found.num_tensors} tensors, {format_bytes(found.num_bytes)} in {len(found.paths)} files, complete "
        "(by headers and sizes; `ernie-local verify` reads every byte)"
    )
    return Outcome.ok(text, facts)


def _check_profile(examination: Examination) -> Outcome:
    """Slow for a profile that cannot be used, ok where there is none."""
    path, stored = examination.subject.profile_path, examination.stored_profile
    facts: dict[str, object] = {"present": path.exists(), "date": None, "difference": None}
    measure = "run `ernie-local bench`"
    if isinstance(stored, InputUnreadable):
        return Outcome.slow(f"cannot be read: {stored.why}", measure, facts)
    profile, difference = stored
    if profile is None:
        return Outcome.ok("this machine was not measured yet (ernie-local bench)", facts)
    facts |= {"date": profile.date, "difference": difference}
    if difference is not None:
        return Outcome.slow(f"of another machine: {difference}", measure, facts)
    return Outcome.ok(profile.summary, facts)


DISK = Check("disk", _check_disk)
CHECKPOINT = Check("checkpoint", _check_checkpoint)
PROFILE = Check("profile", _check_profile)
