"""Files that are no plain files, and a limit of time for what must not wait for them."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# By name, a function that makes one at a path.
SPECIAL_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "directory": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@contextmanager
def within_seconds(seconds: int) -> Iterator[None]:
    """AssertionError where the block takes longer, also where it waits in a call of the system."""

    def end(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
