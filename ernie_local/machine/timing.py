"""Times a piece of work several times, and gives its rate with the spread."""

from __future__ import annotations

import time
from collections.abc import Callable

from ernie_local.planner.profile import Measurement

Clock = Callable[[], float]
ROUNDS = 7


def measure_rate(
    run: Callable[[], object], work: float, rounds: int = ROUNDS, clock: Clock = time.perf_counter
) -> Measurement:
    """Work a second of `run`, where each call does `work` of it; a first call is not counted."""
    run()
    rates = []
    for _ in range(rounds):
        start = clock()
        run()
        rates.append(work / (clock() - start))
    return Measurement.of(rates)
