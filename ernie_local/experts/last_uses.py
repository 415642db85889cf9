"""Until when each part of a memory is wanted by work that a device was given: what may be overwritten when.

One stream's work, in its order. Knows nothing of pages, nor of what the work is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from ernie_local.experts.device import Event

_GRAIN = 4096  # bytes; pages begin at multiples of it
# For an older one a younger one is waited for that surely lies behind it: no two are noted in another order
# than they were given in that are further apart than pages can be on their way at a time.
_KEPT_EVENTS = 256
_SURELY_LATER = 128


class LastUses:
    """By range of bytes, the last event that it has been noted with."""

    def __init__(self, num_bytes: int) -> None:
        # Not backed by memory before something is noted.
        self._numbers = np.zeros(num_bytes // _GRAIN, dtype=np.int32)
        self._count = 0
        self._events: deque[tuple[int, Event]] = deque(maxlen=_KEPT_EVENTS)

    def note(self, ranges: Iterable[tuple[int, int]], event: Event) -> None:
        """The bytes of these ranges, (first, number), are wanted until the event; it is the latest so far."""
        self._count += 1
        self._events.append((self._count, event))
        for first, num_bytes in ranges:
            self._numbers[first // _GRAIN : -(-(first + num_bytes) // _GRAIN)] = self._count

    def find(self, first: int, num_bytes: int) -> Event | None:
        """With what this range may be overwritten; None if nobody has used it."""
        number = int(self._numbers[first // _GRAIN : -(-(first + num_bytes) // _GRAIN)].max())
        if not number:
            return None
        oldest = self._events[0][0]
        return self._events[number - oldest if number >= oldest else _SURELY_LATER][1]
