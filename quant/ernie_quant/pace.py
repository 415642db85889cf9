"""Predicts how long a run takes: from a rehearsal before the work, then from what units of each kind took.

Costs of plan.py compare units of one kind. Between kinds they are off by several times, by shape and machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

# After the last unit figures are drawn for the report, every byte is read again, and a question is asked.
REPORT_SECONDS, _ANSWER_SECONDS, _CHECKED_BYTES_PER_SECOND = 4.0, 0.5, 150e6
# Of units that are not rehearsed, a second a cost relative to an expert's (docs/performance.md).
_OTHER_SHARE = 0.7
# A prediction counts as much as this share of the units of its kind.
_REHEARSED_WEIGHT, _GUESSED_WEIGHT = 0.1, 0.01


def kind_of(unit: str) -> str:
    """`expert BANK`, another first word like `layer`, or `fixed` for a tensor."""
    first, _, rest = unit.partition(" ")
    if first == "expert":
        return f"expert {rest.split('.')[1]}"
    return first if rest else "fixed"


class Pace:
    """Seconds that units take, by kind."""

    def __init__(self, costs: Mapping[str, float], rehearsed: Mapping[str, float]) -> None:
        """costs: of every unit; rehearsed: seconds a cost of some kinds, may be empty."""
        self._costs = costs
        self._rehearsed = rehearsed
        self._cost_of_all = _by_kind(costs)
        self._cost_done: defaultdict[str, float] = defaultdict(float)
        self._took: defaultdict[str, float] = defaultdict(float)

    def learn(self, unit: str, seconds: float) -> None:
        """The unit took so long."""
        self._cost_done[kind_of(unit)] += self._costs[unit]
        self._took[kind_of(unit)] += seconds

    def seconds(self, costs: Mapping[str, float]) -> float:
        """What these units take, of these costs, as far as is known now."""
        return sum(cost * self._seconds_a_cost(kind) for kind, cost in _by_kind(costs).items())

    def _seconds_a_cost(self, kind: str) -> float:
        done, took = self._cost_done[kind], self._took[kind]
        guess, weight = self._rehearsed.get(kind), _REHEARSED_WEIGHT
        if guess is None and self._rehearsed:
            guess, weight = _OTHER_SHARE * min(self._rehearsed.values()), _GUESSED_WEIGHT
        if guess is not None:
            weight *= self._cost_of_all[kind]
            return (guess * weight + took) / (weight + done)
        if not done:  # as units of other kinds
            done, took = sum(self._cost_done.values()), sum(self._took.values())
        return took / done if done else 1.0


def _by_kind(costs: Mapping[str, float]) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for unit, cost in costs.items():
        found[kind_of(unit)] += cost
    return found


def audit_seconds(num_bytes: int) -> float:
    """About what the last check of weights of `num_bytes` takes."""
    return num_bytes / _CHECKED_BYTES_PER_SECOND + _ANSWER_SECONDS
