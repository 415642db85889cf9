"""The check of the disk that experts are paged from: its kind, its speed at their size, the space on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from ernie_local.doctor.finding import Finding
from ernie_local.errors import ErnieLocalError
from ernie_local.machine.storage import Storage, find_storage
from ernie_local.sizes import GIB, MIB, format_bytes

NAME = "disk"
# Half of a 4-bit model's experts in memory: a token every two seconds, and more.
_SLOW_BYTES_PER_SECOND = 0.5e9
_LITTLE_SPACE = 2 * GIB
_SECONDS = 0.6
_FILE_BYTES = 48 * MIB  # of our own, and no more: a slow disk takes seconds to write it


def check(model_files: Sequence[Path], temporary_folder: Path) -> Finding:
    """Of the largest of a model's files where it is large enough, else of a file in the temporary folder."""
    largest = max(model_files, key=lambda path: path.stat().st_size, default=None)
    is_model = largest is not None and largest.stat().st_size >= _FILE_BYTES
    place = largest if is_model and largest is not None else temporary_folder
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
        return Finding(NAME, "slow", f"{whose} cannot be timed: {error.why}", error.hint, facts)
    facts |= measured
    text = f"{whose}: {speed / 1e9:.2f} GB/s at pages of experts, {_kind(storage)}, {format_bytes(free)} free"
    fix = _fix(storage, speed, free)
    return Finding(NAME, "ok" if fix is None else "slow", text, fix, facts)


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
        "network": "a network's or another system's disk",
        "memory": "in memory, so no disk's speed",
        "rotating": "by its own word a rotating disk",  # virtual ones say so, too
        "solid": "a solid-state disk",
        "unknown": "a disk of unknown kind",
    }
    name = "" if storage.file_system is None else f" ({storage.file_system})"
    return words[storage.kind] + name


def _fix(storage: Storage, speed: float, free: int) -> str | None:
    if speed < _SLOW_BYTES_PER_SECOND:
        is_old = storage.kind in ("network", "rotating")
        better = "a solid-state disk of this machine" if is_old else "a faster disk"
        return f"keep the model on {better}, or all of it in memory: paging waits for this one"
    if free < _LITTLE_SPACE:
        return f"free some space: {format_bytes(_LITTLE_SPACE)} is little"
    return None
