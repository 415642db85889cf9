"""Lets Ctrl-C and SIGTERM ask long work to stop, and says what is kept of work that they end at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ernie_local.errors import Interrupted


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


class Terminated(KeyboardInterrupt):
    """Whoever started the process asked it to end, or its terminal was closed."""


@contextmanager
def raising_terminated() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Terminated, which chats treat like Ctrl-C."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise Terminated(signal.Signals(number).name)

    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    before = {
        getattr(signal, name): signal.getsignal(getattr(signal, name))
        for name in names
        if hasattr(signal, name)
    }
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def telling_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """Inside, Ctrl-C ends as Interrupted, which says what is `kept` of the work."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            "interrupted: Ctrl-C was pressed before the end", kept(), "run the same command again"
        ) from error
