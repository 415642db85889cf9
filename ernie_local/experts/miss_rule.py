"""Which pages that a card lacks are copied to it, and which are computed by the processor where they lie.

Pure arithmetic over two times that were measured on the machine; knows no hardware.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MissRule:
    """Seconds that a page more takes: copied and computed on the card, or computed by the processor.

    Copies and the processor work at the same time, so both should end together. Infinity rules a way out.
    """

    fetch_seconds: float
    compute_seconds: float

    @property
    def computes(self) -> bool:
        """Whether the processor may compute some."""
        return not math.isinf(self.compute_seconds)

    def describe(self) -> str:
        """What happens to pages that the card lacks, for people."""
        if math.isinf(self.compute_seconds):
            return "what it lacks is copied to it"
        if math.isinf(self.fetch_seconds):
            return "what it lacks is computed by the processor"
        fetch, compute = 1e3 * self.fetch_seconds, 1e3 * self.compute_seconds
        return (
            f"of what it lacks a page is copied in {fetch:.2f} ms, or computed by the processor in "
            f"{compute:.2f} ms, as was measured"
        )

    def num_to_fetch(self, num_missing: int) -> int:
        """Of so many missing pages of a token's layer; as few as it is worth."""
        if math.isinf(self.fetch_seconds):
            return 0
        if math.isinf(self.compute_seconds):
            return num_missing

        def seconds(num_fetched: int) -> float:
            return max(num_fetched * self.fetch_seconds, (num_missing - num_fetched) * self.compute_seconds)

        return min(range(num_missing + 1), key=seconds)


ALWAYS_FETCH = MissRule(0.0, math.inf)
ALWAYS_COMPUTE = MissRule(math.inf, 0.0)
