"""Ends an answer at texts that a client named, and holds back what may become one of them."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Takes an answer piece by piece, and gives it on up to the first of the stop texts, without it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.has_stopped = False

    def push(self, text: str) -> str:
        """What can be shown now."""
        if self.has_stopped:
            return ""
        self._held += text
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.has_stopped = True
            shown, self._held = self._held[: min(ends)], ""
            return shown
        kept = self._half_stop()
        shown = self._held[: len(self._held) - kept]
        self._held = self._held[len(shown) :]
        return shown

    def finish(self) -> str:
        """What was held back when the answer ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _half_stop(self) -> int:
        """Characters at the end that may begin a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
