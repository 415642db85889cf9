"""Stores entries in a folder: private, checked by a checksum, thrown away by age and size.

docs/format.md has the bytes of an entry. What lies in the folder and is not an entry is never touched.
Whatever fails while a program computes is told as a CacheWarning, and the result is computed instead.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ernie_local import defaults
from ernie_local.errors import UsageError, parameter
from ernie_local.files import read_plain
from ernie_local.reuse.entry import entry_bytes, read_entry, write_entry
from ernie_local.sizes import format_bytes

MOST_DAYS = 30  # without use
# The standard name tells backup programs to leave the folder out; the second line tells us that it is ours.
MARKER = "CACHEDIR.TAG"
_MARKER_LINES = "Signature: 8a477f597d28d172789f06886806bc55\n# ernie-local cache, version 1\n"
_ENTRY_NAME = re.compile(r"(?:features|model)-[0-9a-f]{32}|prefix-[0-9a-f]{32}-[ct][0-9]{1,9}-[0-9a-f]{32}")
_NEW_PREFIX = ".new-"
_NEW_NAME = re.compile(r"\.new-[\w]+")
_STALE_SECONDS = 3600  # after which a half-written entry belongs to a process that was killed
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_DAY = 86_400


class CacheWarning(UserWarning):
    """Something is wrong with the cache folder; results are computed, or not stored."""


@dataclass(frozen=True, slots=True)
class CacheContent:
    """What a cache folder holds: entries, and their bytes."""

    num_entries: int
    num_bytes: int


class CacheFolder:
    """A folder of entries that several threads and processes may use at once.

    An entry appears whole or not at all, and its name says all that its content depends on, so that nobody
    needs a lock: who writes the same name writes the same bytes.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """Use `open` or `existing`. limit_bytes: of all entries."""
        self.path = path
        self.limit_bytes = limit_bytes
        self._can_write = True

    def __repr__(self) -> str:
        return f"CacheFolder({str(self.path)!r})"

    @staticmethod
    def open(path: str | os.PathLike[str], limit_bytes: int) -> CacheFolder:
        """The folder at `path`, made where there is none; entries that are too old or too many are removed.

        UsageError for what is no folder, another's folder, or one with other files and without our marker.
        """
        folder = Path(path).expanduser()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Looked at before the marker is written: it would make any folder ours.
            if not _is_marked(folder):
                _adopt(folder)
            _make_private(folder)
        except FileExistsError as error:
            raise _refusal(folder, "it is a file", "give a new or an empty folder") from error
        except OSError as error:
            raise _refusal(
                folder, error.strerror or str(error), "give a folder that you may write to"
            ) from error
        opened = CacheFolder(folder, limit_bytes)
        opened.purge()
        return opened

    @staticmethod
    def existing(path: str | os.PathLike[str]) -> CacheFolder:
        """The cache folder that is at `path` already; UsageError where there is none."""
        folder = Path(path).expanduser()
        try:
            is_ours = _is_marked(folder)
        except OSError as error:
            raise _refusal(folder, error.strerror or str(error), "check the spelling") from error
        if not is_ours:
            why = f"it has no {MARKER} of ernie-local" if folder.is_dir() else "there is no such folder"
            raise _refusal(folder, why, "name the folder of a chat")
        return CacheFolder(folder, defaults.cache_bytes(None))

    def names(self) -> list[str]:
        """Names of all entries; none where the folder cannot be read."""
        return [name for name, _ in self._entries()]

    def content(self) -> CacheContent:
        """What is there now."""
        sizes = [status.st_size for _, status in self._entries()]
        return CacheContent(len(sizes), sum(sizes))

    def read(self, name: str, num_bytes: int, buffers: Iterable[memoryview]) -> bool:
        """Fill `buffers`, one after another, with the `num_bytes` of the entry; whether it was there, whole.

        Until this has returned True the buffers hold what nobody has vouched for. A damaged entry is removed
        and told. The next buffer is asked for when the one before is full.
        """
        try:
            with open(
                self.path / name, "rb", buffering=0, opener=lambda path, _: os.open(path, _OPEN_FLAGS)
            ) as file:
                fault = read_entry(file, name, num_bytes, buffers)
                if fault is None:
                    self.touch([name])
                    return True
        except FileNotFoundError:
            return False
        except OSError as error:
            fault = f"cannot be read ({error.strerror or error})"
        if stat.S_ISREG(self._status(name)):
            self._remove(name)
        self._warn(f"{name} {fault}; it is computed again")
        return False

    def write(self, name: str, num_bytes: int, pieces: Iterable[memoryview]) -> bool:
        """Store `pieces`, of `num_bytes` together, as the entry `name`; whether it is there now."""
        assert _ENTRY_NAME.fullmatch(name), name
        if not self._can_write:
            return False
        size = entry_bytes(num_bytes)
        if size > self.limit_bytes:
            self._warn(
                f"an entry of {format_bytes(size)} is not stored: the limit of all is "
                f"{format_bytes(self.limit_bytes)} ({parameter('cache_size')})"
            )
            return False
        kind = self._status(name)
        if kind and not stat.S_ISREG(kind):
            self._warn(f"{name} is not a plain file: it is left alone, and nothing is stored there")
            return False
        self.purge(size)
        temporary: Path | None = None
        try:
            descriptor, text = tempfile.mkstemp(prefix=_NEW_PREFIX, dir=self.path)
            temporary = Path(text)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                write_entry(file, name, num_bytes, pieces)
            # Not synced to the disk: the checksum tells an entry that a power loss has torn.
            temporary.replace(self.path / name)
        except OSError as error:
            self._can_write = False
            self._warn(f"cannot be written ({error.strerror or error}): this process stores nothing more")
            return False
        finally:
            if temporary is not None:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
        return True

    def touch(self, names: Iterable[str]) -> None:
        """Count these as used now, one after the other: what is named last is kept longest."""
        follows = os.utime not in os.supports_follow_symlinks  # Windows
        for name in names:
            with suppress(OSError):
                os.utime(self.path / name, follow_symlinks=follows)

    def purge(self, coming_bytes: int = 0) -> None:
        """Remove what nobody used for 30 days, then the least recently used until `coming_bytes` fit."""
        now = time.time()
        for path, status in self._files(_NEW_NAME):
            if now - status.st_mtime > _STALE_SECONDS:
                self._remove(path)
        entries = sorted(self._entries(), key=lambda entry: entry[1].st_mtime_ns)
        total = sum(status.st_size for _, status in entries) + coming_bytes
        for name, status in entries:
            if total > self.limit_bytes or now - status.st_mtime > MOST_DAYS * _DAY:
                total -= status.st_size
                self._remove(name)

    def clear(self) -> CacheContent:
        """Remove all entries; what was removed. UsageError where one cannot be."""
        num_entries = num_bytes = 0
        for name, status in self._entries():
            try:
                (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                raise _refusal(
                    self.path, f"{name} cannot be removed: {error.strerror}", "check the rights to the folder"
                ) from error
            num_entries, num_bytes = num_entries + 1, num_bytes + status.st_size
        for name, _ in self._files(_NEW_NAME):
            self._remove(name)
        return CacheContent(num_entries, num_bytes)

    def _entries(self) -> list[tuple[str, os.stat_result]]:
        return self._files(_ENTRY_NAME)

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[str, os.stat_result]]:
        """Plain files, no links to them, with such names. Another process may remove them meanwhile."""
        found: list[tuple[str, os.stat_result]] = []
        with suppress(OSError), os.scandir(self.path) as scanned:
            for entry in scanned:
                if pattern.fullmatch(entry.name):
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found.append((entry.name, status))
        return found

    def _status(self, name: str) -> int:
        """The kind of what lies at `name`, without following it; 0 for nothing."""
        try:
            return (self.path / name).lstat().st_mode
        except OSError:
            return 0

    def _remove(self, name: str) -> None:
        with suppress(OSError):  # another process was faster, or the folder may only be read
            (self.path / name).unlink()

    def _warn(self, fault: str) -> None:
        warnings.warn(f"the cache {self.path}: {fault}", CacheWarning, stacklevel=3)


def _is_marked(folder: Path) -> bool:
    """Whether the folder is a cache of this version; UsageError for one of another version."""
    try:
        text = read_plain(folder / MARKER, 1 << 12).decode("utf-8", "replace")
    except FileNotFoundError:
        return False
    if text.startswith(_MARKER_LINES):
        return True
    if "# ernie-local cache" in text:
        why = f"another version of ernie-local wrote its {MARKER}"
        raise _refusal(folder, why, "use that version, or give another folder")
    return False


def _adopt(folder: Path) -> None:
    """Make an empty folder ours."""
    present = sorted(entry.name for entry in folder.iterdir() if not _NEW_NAME.fullmatch(entry.name))
    if MARKER in present and _is_marked(folder):  # another process was faster, and may have written results
        return
    if present:
        raise _refusal(
            folder,
            f"it holds {len(present)} files that are not of a cache, the first is {present[0]}",
            "give a new or an empty folder",
        )
    folder.chmod(0o700)
    descriptor, temporary = tempfile.mkstemp(prefix=_NEW_PREFIX, dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_MARKER_LINES + "# Results of computation. `ernie-local cache clear` removes them.\n")
    Path(temporary).replace(folder / MARKER)


def _make_private(folder: Path) -> None:
    """Let nobody else in, as features of documents lie here. UsageError for the folder of another user."""
    if not hasattr(os, "geteuid"):  # Windows, where a folder has its parent's rights
        return
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise _refusal(
            folder,
            f"it belongs to user {status.st_uid}, and this process runs as {os.geteuid()}",
            "give a folder of your own: whoever may write there decides what is read",
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)
        warnings.warn(
            f"the cache {folder} was open to other users of this machine; now it is not",
            CacheWarning,
            stacklevel=3,
        )


def _refusal(folder: Path, why: str, hint: str) -> UsageError:
    return UsageError(f"{folder} cannot be the folder of {parameter('cache')}", why, hint)
