"""Lets Ctrl-C and SIGTERM ask long work to stop, instead of ending it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_requests(on_stop: Callable[[], None], *signals: signal.Signals) -> Iterator[None]:
    """Inside, the first of each of these signals calls `on_stop`; a second one acts as before.

    A signal that the process was started to ignore, as SIGINT is in the background, stays ignored.
    """
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}

    def ask_to_stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        on_stop()

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, ask_to_stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
