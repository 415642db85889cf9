"""Makes the units of a run together with other processes: takes those that nobody has, waits for the rest.

A unit is made from files that are complete before it is taken: its bytes do not depend on who makes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import Bank
from ernie_local.errors import Stopped
from ernie_quant.pace import Pace
from ernie_quant.work import Work, tell_nobody

# Its name, the seconds so far, earlier runs included, and about the seconds of all.
OnUnit = Callable[[str, float, float], None]
UnitReport = Mapping[str, float]
# Between two looks at what others did: units of small models take hundredths of a second.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.25


def expert_unit(layer_id: int, bank: Bank, expert_id: int) -> str:
    """The name of an expert."""
    return f"expert {layer_id}.{bank}.{expert_id}"


def dense_unit(tensor: str) -> str:
    """The name of a matrix or gated MLP that is made from calibration tokens, a packed tensor."""
    return f"dense {tensor}"


class Units:
    """Takes, makes and records units, and tells the caller."""

    def __init__(
        self,
        work: Work,
        files: CheckpointFiles,
        costs: Mapping[str, float],
        pace: Pace,
        seconds_after: float,
        on_unit: OnUnit,
        should_stop: Callable[[], bool] | None,
        on_others: Callable[[str], None] = tell_nobody,
    ) -> None:
        """costs: of every unit; pace: what it takes; seconds_after: what follows the last unit.

        on_others: gets a text about other processes at this work, which may be empty.
        """
        self.work, self.files, self._pace = work, files, pace
        self.done = work.done  # the reports of units that are finished, by whomever
        self._on_unit, self._should_stop, self._on_others = on_unit, should_stop, on_others
        self._numbers = {unit: number for number, unit in enumerate(costs)}
        self._seconds_after = seconds_after
        self._left = {unit: cost for unit, cost in costs.items() if unit not in self.done}
        done_before = {unit: cost for unit, cost in costs.items() if unit in self.done}
        # Before this process began, or by others meanwhile, as long as it would have taken here.
        self._seconds_elsewhere = pace.seconds(done_before)
        self._by_others: set[str] = set()
        self._began = self._counted = time.monotonic()
        self._waited = 0.0
        self._tell("")

    def share(self, what: str, makes: Mapping[str, Callable[[], UnitReport | None]]) -> None:
        """Have all of these units made, each by one process; none of them may need another.

        what: all of them in a word or two; makes: what makes each unit and returns its report. Stopped as
        from `check_stop`.
        """
        pause = _SHORTEST_PAUSE
        while left := [unit for unit in makes if unit not in self.done]:
            unit = next(filter(self._take, left), None)
            self._tell_others(what, makes, "" if unit else left[0])
            if unit is not None:
                try:
                    self.finish(unit, makes[unit]())
                finally:
                    self.work.give_back(self._numbers[unit])
                pause = _SHORTEST_PAUSE
            elif left[0] not in self.done:
                self._wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def take_check(self) -> bool:
        """Be the one who checks and ends the work when all units are done.

        False when another process has done it; Stopped as from `check_stop` while it is waited for.
        """
        while not self.work.is_ended:
            if self.work.take_check():
                return not self.work.is_ended
            self._on_others("waiting for the check of the checkpoint by another process")
            self._wait(_LONGEST_PAUSE)
        return False

    def tell(self, what: str, seconds_after: float) -> None:
        """Tell the caller what is done now that all units are; it and what follows take `seconds_after`."""
        self._seconds_after = seconds_after
        self._tell(what)

    def finish(self, unit: str, report: UnitReport | None = None) -> None:
        """Sync its bytes to the disk and record it. Stopped as from `check_stop`."""
        self.files.sync()
        self.work.record(unit, report)
        now = time.monotonic()
        self._pace.learn(unit, now - self._counted)
        self._counted = now
        del self._left[unit]
        self._tell(unit)
        self.check_stop()

    def check_stop(self) -> None:
        """Raise Stopped if the caller asks for it; recorded units stay."""
        if self._should_stop is not None and self._should_stop():
            done, of_all = self._seconds()
            num_units = len(self._numbers)
            others = "; another process goes on with the rest" if self.work.has_others else ""
            raise Stopped(
                f"stopped after {num_units - len(self._left)} of {num_units} units, "
                f"{done / of_all:.0%} of the work",
                f"a stop was requested; finished units are in {self.work.directory}{others}",
                "run the same command again to resume",
            )

    def _take(self, unit: str) -> bool:
        """Take a unit that nobody has or has made."""
        if unit in self.done or not self.work.take(self._numbers[unit]):
            return False
        self._hear()
        if unit not in self.done:
            return True
        self.work.give_back(self._numbers[unit])
        return False

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)
        self._hear()
        now = time.monotonic()
        self._waited += now - self._counted
        self._counted = now
        self.check_stop()

    def _hear(self) -> None:
        for unit in self.work.hear():
            self._by_others.add(unit)
            cost = self._left.pop(unit, None)
            if cost is not None:
                self._seconds_elsewhere += self._pace.seconds({unit: cost})
                self._tell(unit)

    def _tell_others(self, what: str, makes: Mapping[str, object], awaited: str) -> None:
        count = len(self._by_others & makes.keys())
        told = [f"{count} of {len(makes)} {what} by others"] if count else []
        told += [f"waiting for {awaited} by another process"] if awaited else []
        self._on_others(", ".join(told))

    def _tell(self, what: str) -> None:
        self._on_unit(what, *self._seconds())

    def _seconds(self) -> tuple[float, float]:
        """Those so far, and about those of all."""
        done = self._seconds_elsewhere + time.monotonic() - self._began - self._waited
        return done, done + self._pace.seconds(self._left) + self._seconds_after
