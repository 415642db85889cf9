"""Locks on single bytes of a file, by which processes on one or several machines share work.

The system holds them for an open file: they end with the process, however it ends, and never grow stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ernie_local.errors import UsageError

_FLOCK = "hhqqi4x"  # struct flock of Linux: type, whence, first byte, number of bytes, process
_IS_TAKEN = (errno.EAGAIN, errno.EACCES)


class ByteLocks:
    """Locks of this opened file. A second one of the same process is another holder."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is made if it is not there. UsageError where that cannot be."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(
                f"no work can be done in {path.parent}: {path.name} cannot be opened",
                error.strerror or str(error),
                "make the folder and its files writable for you, or name another directory",
            ) from error

    @property
    def is_in_place(self) -> bool:
        """Whether the file still has its name: it loses it when the work is complete."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def take(self, place: int, *, shared: bool = False) -> bool:
        """Lock the byte, or change the lock that is held on it; False if others do not allow it now.

        shared: allows others that are shared too.
        """
        return self._set(fcntl.F_OFD_SETLK, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, place)

    def wait_for(self, place: int) -> None:
        """Lock the byte when nobody else has it."""
        self._set(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, place)

    def release(self, place: int) -> None:
        """Unlock the byte."""
        self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, place)

    @contextmanager
    def held(self, place: int) -> Iterator[None]:
        """Inside, this holder has the byte; waits for it."""
        self.wait_for(place)
        try:
            yield
        finally:
            self.release(place)

    def close(self) -> None:
        """End all locks; the file stays. May be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _set(self, call: int, kind: int, place: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor, call, struct.pack(_FLOCK, kind, os.SEEK_SET, place, 1, 0))
        except OSError as error:
            if call == fcntl.F_OFD_SETLK and error.errno in _IS_TAKEN:
                return False
            raise UsageError(
                f"files in {self._path.parent} cannot be locked",
                f"{error.strerror or error}: without locks, two processes could write to the same place",
                "name a directory on another disk; a network disk has to be mounted with locks",
            ) from error
        return True
