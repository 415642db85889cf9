"""Shows how far work in units is, and how long the rest will take; downloads models while it is shown."""

from __future__ import annotations

import time
from typing import Self

from ernie_cli.console import Console
from ernie_cli.signals import telling_what_is_kept
from ernie_cli.status import duration
from ernie_local.escapes import printable_line
from ernie_local.sizes import format_bytes

_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_UNTIL_PACE = 2.0  # before that, the time left would be a guess
_SECONDS_OF_RATE = 5.0  # over which the speed of a download is taken


class UnitProgress:
    """Shows finished units on stderr: a bar on a terminal, a line every minute elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line = self._began = time.monotonic()
        self._done_before: float | None = None
        self._shown: tuple[str, float, float, float | None] = ("starting", 0.0, 0.0, None)
        self._download = self._rate = self._others = ""
        self._rate_began, self._bytes_before = self._began, 0

    def show(self, unit: str, work_done: float, work_of_all: float) -> None:
        """`unit` is done. The first call says how much an earlier run did; the time left leaves that out."""
        unit, now = printable_line(unit), time.monotonic()
        if self._done_before is None:
            self._done_before, self._began = work_done, now
        done_here, rest = work_done - self._done_before, work_of_all - work_done
        elapsed = now - self._began
        is_known = done_here > 0 and rest > 0 and elapsed > _SECONDS_UNTIL_PACE
        left = elapsed * rest / done_here if is_known else None
        self._shown = unit or "starting", work_done, work_of_all, left
        self._tell()

    def show_download(self, num_bytes: int, bytes_of_all: int) -> None:
        """So many bytes of the source have arrived. Called by another thread than `show`."""
        now = time.monotonic()
        seconds = now - self._rate_began
        if seconds > _SECONDS_OF_RATE or not self._download:
            rate = max(num_bytes - self._bytes_before, 0) / max(seconds, 1e-3)
            self._rate = f"{format_bytes(int(rate))}/s"
            self._rate_began, self._bytes_before = now, num_bytes
        self._download = (
            f"; fetched {format_bytes(num_bytes)} of {format_bytes(bytes_of_all)} at {self._rate}"
        )
        self._tell()

    def show_others(self, told: str) -> None:
        """What other processes do at the same work."""
        others = f" ({printable_line(told)})" if told else ""
        if others != self._others:
            self._others = others
            self._tell()

    def _tell(self) -> None:
        unit, done, of_all, left = self._shown
        unit += self._others + self._download
        self._console.status.show(unit, done, of_all, left)
        now = time.monotonic()
        if not self._console.status.is_shown and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            told = "" if left is None else f", about {duration(left)} left"
            share = f"{done / of_all:.0%}: " if of_all else ""
            self._console.note(f"{share}{unit}{told}")

    def __enter__(self) -> Self:
        self._console.status.show("starting")
        return self

    def __exit__(self, *_raised: object) -> None:
        self._console.status.hide()


def downloaded(name: str, console: Console) -> str:
    """The directory of a hub model, after what is not in the cache is downloaded; any other name as it is.

    Errors as of `resolve_model`.
    """
    if not name.startswith("hf:"):
        return name
    from ernie_local.checkpoint.hub import resolve_model

    progress, is_told = UnitProgress(console), False

    def show(model: str, done: int, total: int) -> None:
        nonlocal is_told
        if not is_told:
            console.note(f"downloading {model}: {format_bytes(total - done)} of {format_bytes(total)}")
            is_told = True
        progress.show(f"downloading {model}", done, total)

    kept = "what has arrived is kept in the cache, and the download goes on from there"
    with telling_what_is_kept(lambda: kept), console.telling_warnings(), console.working("asking the hub"):
        return str(resolve_model(name, show))
