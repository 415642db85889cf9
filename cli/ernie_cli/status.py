"""Shows on the last line of a terminal what a command does now: the part, how far it is, and for how long."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_TICK_SECONDS = 0.2
_BAR_CELLS = 20
_ERASE = "\r\x1b[K"


class StatusLine:
    """Drawn by a thread of its own: the seconds go on while the command computes.

    What is done within a tick is never shown. Whoever writes to the same terminal does it inside `above`.
    """

    def __init__(self, stream: TextIO, is_shown: bool) -> None:
        """is_shown: whether `stream` is a terminal on which lines can be erased."""
        self.is_shown = is_shown
        self._stream = stream
        # A signal handler may write while the same thread writes.
        self._lock = threading.RLock()
        self._ended: threading.Event | None = None  # of the thread that draws now
        self._part, self._began = "", 0.0
        self._share: float | None = None
        self._seconds_left: float | None = None
        # What else goes on, "" for nothing; asked whenever the line is drawn.
        self.beside: Callable[[], str] = str
        self._is_drawn = self._is_covered = False

    def show(self, part: str, done: float = 0, work: float = 0, seconds_left: float | None = None) -> None:
        """This part is worked on, `done` of `work` of it; before the first of it is done, nobody knows."""
        if not self.is_shown:
            return
        with self._lock:
            if self._ended is None:
                self._ended = threading.Event()
                threading.Thread(target=self._draw_until, args=(self._ended,), daemon=True).start()
                self._part = ""
            shown = "".join(character for character in part if character.isprintable())
            if shown != self._part:
                self._part, self._began = shown, time.monotonic()
            self._share = min(1.0, done / work) if done and work else None
            self._seconds_left = seconds_left

    def hide(self) -> None:
        """Nothing is worked on."""
        with self._lock:
            if self._ended is not None:
                self._ended.set()
                self._ended = None
            self._erase()

    @contextmanager
    def above(self, *, leaves_line_open: bool) -> Iterator[None]:
        """Inside, the line is erased; it comes back afterwards, unless what was written has no end yet."""
        with self._lock:
            self._erase()
            yield
            self._is_covered = leaves_line_open

    def text(self) -> str:
        """What is shown."""
        beside = self.beside()
        seconds = f"{time.monotonic() - self._began:.0f} s" + (beside and f", {beside}")
        if self._share is None:
            return f"{self._part}, {seconds}"
        cells = int(self._share * _BAR_CELLS)
        bar = f"[{'#' * cells}{'-' * (_BAR_CELLS - cells)}]"
        left = "" if self._seconds_left is None else f", about {duration(self._seconds_left)} left"
        # The part comes last: it is the longest, and the end is cut off where the terminal is narrow.
        return f"{bar} {self._share:4.0%}, {seconds}{left}: {self._part}"

    def _draw_until(self, ended: threading.Event) -> None:
        from rich.cells import cell_len, set_cell_size

        while not ended.wait(_TICK_SECONDS):
            with self._lock:
                if ended.is_set() or self._is_covered:
                    continue
                text = self.text()
                # A line that is too long would wrap, and erasing would leave its first part.
                text = set_cell_size(text, min(cell_len(text), _columns(self._stream) - 1))
                self._stream.write(f"{_ERASE}{text}")
                self._stream.flush()
                self._is_drawn = True

    def _erase(self) -> None:
        if self._is_drawn:
            self._stream.write(_ERASE)
            self._stream.flush()
            self._is_drawn = False


def counted(number: int, noun: str) -> str:
    """1 page, 3 pages."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes, or seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return 80
