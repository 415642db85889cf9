"""A piece of work timed several times: its rate, with the spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from ernie_local.planner.profile import Measurement

Clock = Callable[[], float]
ROUNDS = 7


def measure_rate(
    run: Callable[[], object], work: float, rounds: int = ROUNDS, clock: Clock = time.perf_counter
) -> Measurement:
    """Work a second of `run`, each call of which does `work` of it; a first call is not counted."""
    run()
    rates = []
    for _ in range(rounds):
        start = clock()
        run()
        rates.append(work / (clock() - start))
    return summarize(rates)


def summarize(values: Sequence[float]) -> Measurement:
    """Median and extremes of at least one value."""
    return Measurement(statistics.median(values), min(values), max(values), len(values))
