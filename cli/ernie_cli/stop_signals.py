"""SIGINT and SIGTERM as a wish to stop soon: long work ends after its current unit, with nothing lost.

A second signal of the same kind ends the process at once. Knows nothing of the work.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the two signals are remembered instead of obeyed."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        """on_stop: called at the first signal, to tell the user that it was heard."""
        self._on_stop = on_stop
        self._was_asked = False
        self._before: dict[signal.Signals, Any] = {}

    def was_asked(self) -> bool:
        """Whether a signal came."""
        return self._was_asked

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(number, self._before[signal.Signals(number)])
        self._was_asked = True
        self._on_stop()
