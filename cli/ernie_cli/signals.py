"""Lets Ctrl-C and SIGTERM ask long work to stop, and says what is kept of work that they end at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ernie_local.errors import Interrupted


@contextmanager
def stop_requests(on_stop: Callable[[], None], *signals: signal.Signals) -> Iterator[None]:
    """Inside, the first of each of these signals calls `on_stop`; a second one acts as before."""
    before = {number: signal.getsignal(number) for number in signals}

    def ask_to_stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        on_stop()

    with _handled(ask_to_stop, signals):
        yield


class Terminated(KeyboardInterrupt):
    """Whoever started the process asked it to end, or its terminal was closed."""


@contextmanager
def raising_terminated() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Terminated, which chats treat like Ctrl-C."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise Terminated(signal.Signals(number).name)

    # Windows has no SIGHUP.
    with _handled(terminate, [one for one in signal.Signals if one.name in ("SIGTERM", "SIGHUP")]):
        yield


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None], signals: Iterable[signal.Signals]
) -> Iterator[None]:
    """Inside, `handler` gets these signals, but for one that the process was started to ignore.

    In the background, SIGINT is ignored and stays so.
    """
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}
    for number, known in before.items():
        if known is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


@contextmanager
def telling_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """Inside, Ctrl-C, and Terminated, end as Interrupted, which says what is `kept` of the work."""
    try:
        yield
    except KeyboardInterrupt as error:
        why = f"{error} came" if isinstance(error, Terminated) else "Ctrl-C was pressed"
        raise Interrupted(
            f"interrupted: {why} before the end", kept(), "run the same command again"
        ) from error
