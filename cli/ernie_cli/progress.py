"""Shows how far long work is."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 60.0


class UnitProgress:
    """Shows finished units on stderr: a bar on a terminal, a line every minute elsewhere."""

    def __init__(self, is_shown: bool = True) -> None:
        self._is_shown = is_shown
        self._bar = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TaskProgressColumn(),
            # From the recent pace of the work itself, not of units, which differ in size.
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            disable=not (is_shown and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("", total=None)
        self._last_line = self._began = time.monotonic()
        self._done_before: float | None = None

    def show(self, unit: str, work_done: float, work_of_all: float) -> None:
        """`unit` is done. The first call says how much an earlier run did; the time left leaves that out."""
        now = time.monotonic()
        if self._done_before is None:
            self._done_before, self._began = work_done, now
            self._bar.reset(self._task, total=work_of_all, completed=int(work_done))
        self._bar.update(self._task, description=unit, completed=work_done)
        if self._is_shown and self._bar.disable and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            done_here = work_done - self._done_before
            left = (now - self._began) * (work_of_all - work_done) / done_here if done_here > 0 else None
            told = "" if left is None else f", about {duration(left)} left"
            print(f"{work_done / work_of_all:.0%}: {unit}{told}", file=sys.stderr, flush=True)

    def show_layer(self, num_done: int, num_layers: int) -> None:
        """A layer is done, the `num_done`th of all."""
        self.show(f"layer {num_done - 1}", num_done, num_layers)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._bar.stop()


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes, or seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
