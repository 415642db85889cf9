"""What a quantizing run is made of, piece by piece: what is done, what it costs, who is told, when to stop.

A unit is a tensor's name, `sequence NUMBER`, `expert LAYER.BANK.ID` or `layer ID`. Knows nothing of how units
are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import Bank
from ernie_local.errors import Stopped
from ernie_quant.work import Work

OnUnit = Callable[[str, float, float], None]


def expert_unit(layer_id: int, bank: Bank, expert_id: int) -> str:
    """The name of an expert."""
    return f"expert {layer_id}.{bank}.{expert_id}"


class Units:
    """Enters units as done, in the journal and with the caller."""

    def __init__(
        self,
        work: Work,
        files: CheckpointFiles,
        costs: Mapping[str, float],
        on_unit: OnUnit | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """costs: of every unit, in whatever measure; on_unit: told a unit, and the cost done and of all."""
        self._work, self._files, self._costs = work, files, dict(costs)
        self._on_unit, self._should_stop = on_unit, should_stop
        self._cost_of_all = sum(costs.values())
        self._cost_done = sum(self._costs.get(unit, 0.0) for unit in work.done)
        if on_unit is not None:
            on_unit("", self._cost_done, self._cost_of_all)

    def is_done(self, unit: str) -> bool:
        """Whether it was done, in this run or before."""
        return unit in self._work.done

    def report(self, unit: str) -> dict[str, float]:
        """What was said of it when it was done."""
        return self._work.done[unit]

    def finish(self, unit: str, report: Mapping[str, float] | None = None) -> None:
        """Enter the unit, when its bytes are on the disk. Stopped, all kept, if the caller wants to."""
        assert unit in self._costs, unit
        self._files.sync()
        self._work.record(unit, report)
        self._cost_done += self._costs[unit]
        if self._on_unit is not None:
            self._on_unit(unit, self._cost_done, self._cost_of_all)
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise Stopped if the caller wants to; what is recorded stays."""
        if self._should_stop is not None and self._should_stop():
            num_done = len(self._work.done.keys() & self._costs.keys())
            raise Stopped(
                f"stopped after {num_done} of {len(self._costs)} units, "
                f"{self._cost_done / self._cost_of_all:.0%} of the work",
                f"a stop was asked for; what is done lies in {self._work.directory}",
                "give the same command again to go on",
            )
