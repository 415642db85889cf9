"""Makes the process's streams safe to use: each may be closed, full, or a pipe whose reader has gone.

What was asked for goes to stdout, so a failure there is an error that names it. Messages on stderr help a
person, so a failure there is ignored. With stdin closed there is nothing to read.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Stdout(io.TextIOWrapper):
    """Stdout whose errors name it."""

    def write(self, text: str, /) -> int:
        """As usual; OSError has the file name "stdout"."""
        with _naming_stdout():
            return super().write(text)

    def flush(self) -> None:
        """As usual; OSError has the file name "stdout"."""
        with _naming_stdout():
            super().flush()


class Stderr(io.TextIOWrapper):
    """Stderr that drops what it cannot write."""

    def write(self, text: str, /) -> int:
        """As usual, but never an OSError."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """As usual, but never an OSError."""
        try:
            super().flush()
        except OSError:
            return


def protect_streams() -> None:
    """Replace the three streams of `sys`. Call once, before anything is read, written or opened."""
    _occupy_closed_descriptors()
    # A terminal that cannot show a character shows `?` for it instead of ending the command.
    for name, descriptor, kind in (("stdout", 1, Stdout), ("stderr", 2, Stderr)):
        before = getattr(sys, name)
        buffer = (
            io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)) if before is None else before.buffer
        )
        encoding = "utf-8" if before is None else before.encoding
        line_buffering = name == "stderr" or buffer.isatty()
        setattr(sys, name, kind(buffer, encoding, "replace", line_buffering=line_buffering))
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  until the end


def abandon_stdout() -> None:
    """After stdout failed: the interpreter's last flush goes nowhere, instead of failing again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


def _occupy_closed_descriptors() -> None:
    """Open what is closed of descriptors 0 to 2: else the next file that is opened becomes a stream.

    For reading only, so that a write to stdout still fails.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest free one, which is this


@contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise OSError(error.errno, text, "stdout") from error
