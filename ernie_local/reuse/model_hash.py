"""Hashes the files of a model, once for each cache folder: a later process knows them by their stamps.

A stamp is size, times and number of a file. The hash is of all bytes, so that a copy of a model has the same
and a changed byte another one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import xxhash

from ernie_local.files import open_plain
from ernie_local.progress import OnProgress
from ernie_local.reuse.cache_folder import CacheFolder, CacheWarning
from ernie_local.reuse.identity import digest_of

_PIECE_BYTES = 4 << 20
_HASH_BYTES = 16
# Less takes no time worth mentioning. A larger model is hashed when its first answer has been given.
_HASHED_AT_ONCE = 256 << 20
# A file may change twice within one tick of its clock: what was written just now is not known by its times.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells a file from another, and from itself after a change, without reading it.

    The time of the last change of its status is among it: no program can set it back.
    """

    path: str
    num_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int


class ModelHash:
    """The hash of a model's files as they were before they were loaded; `value` is None until it is known."""

    def __init__(self, directory: Path, folder: CacheFolder) -> None:
        """OSError where a file cannot be read."""
        self.value: str | None = None
        self._directory, self._folder = directory, folder
        self._stamps = _stamp_model(directory)
        self._entry = f"model-{digest_of(*(astuple(stamp) for stamp in self._stamps))}"
        stored = bytearray(_HASH_BYTES)
        if self._entry in folder.names() and folder.read(self._entry, _HASH_BYTES, [memoryview(stored)]):
            self.value = stored.hex()
        elif sum(stamp.num_bytes for stamp in self._stamps) <= _HASHED_AT_ONCE:
            self.find()

    def find(
        self, on_progress: OnProgress | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> str | None:
        """The hash, from all bytes where it is not known yet; None, with a warning, where it cannot be had.

        Also where the files have changed since: nobody can tell then what was loaded. on_progress: gets
        "model", bytes that were read, and bytes to read.
        """
        try:
            hashed = None
            if self.value is None:
                hashed = _hash_files(self._stamps, on_progress, should_stop)
                if hashed is None:
                    self._warn("stopped before its files were hashed")
                    return None
            if _stamp_model(self._directory) != self._stamps:
                self._warn("its files have changed since it was loaded")
                return None
        except OSError as error:
            self._warn(f"its files cannot be read ({error.strerror or error})")
            return None
        if hashed is not None:
            self.value = hashed.hex()
            if _have_settled(self._stamps):
                self._folder.write(self._entry, _HASH_BYTES, [memoryview(hashed)])
        return self.value

    def _warn(self, why: str) -> None:
        warnings.warn(
            f"nothing of {self._directory} is stored in the cache: {why}", CacheWarning, stacklevel=3
        )


def _stamp_model(directory: Path) -> tuple[FileStamp, ...]:
    """The files that decide what a model computes: config.json and all weights. OSError if one is gone."""
    stamps: list[FileStamp] = []
    for path in sorted([directory / "config.json", *directory.glob("*.safetensors*")]):
        real = path.resolve()
        if not real.exists():  # which whoever loads the model tells better
            continue
        status = real.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        stamps.append(FileStamp(str(real), status.st_size, *times, status.st_ino, status.st_dev))
    return tuple(stamps)


def _have_settled(stamps: tuple[FileStamp, ...]) -> bool:
    """Whether stamps tell every change from now on."""
    newest = max((stamp.changed_ns for stamp in stamps), default=0)
    return time.time_ns() - newest > _SETTLED_SECONDS * 1e9


def _hash_files(
    stamps: tuple[FileStamp, ...],
    on_progress: OnProgress | None,
    should_stop: Callable[[], bool],
) -> bytes | None:
    """A hash of the bytes of these files, whatever they are called; None where it was stopped."""
    state = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    total, num_read = sum(stamp.num_bytes for stamp in stamps), 0
    for stamp in stamps:
        state.update(b"%d:" % stamp.num_bytes)
        with open_plain(stamp.path) as file:
            while arrived := file.readinto(buffer):
                if should_stop():
                    return None
                state.update(buffer[:arrived])
                num_read += arrived
                if on_progress is not None:
                    on_progress("model", num_read, total)
    return state.digest()
