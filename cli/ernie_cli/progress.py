"""How far long work is: a bar with the time left on a terminal, a line now and then elsewhere.

Knows units as names and numbers only.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 60.0


class UnitProgress:
    """Shows units as they are done, on stderr."""

    def __init__(self, is_shown: bool = True) -> None:
        self._is_shown = is_shown
        self._bar = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            # From the recent pace: units differ in size, and resumed ones were never waited for.
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            disable=not (is_shown and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("", total=None)
        self._last_line = time.monotonic()

    def show(self, unit: str, num_done: int, num_units: int) -> None:
        """One more is done."""
        self._bar.update(self._task, description=unit, completed=num_done, total=num_units)
        now = time.monotonic()
        if self._is_shown and self._bar.disable and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{num_done} of {num_units}: {unit}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
