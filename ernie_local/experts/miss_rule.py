"""Which pages that a GPU lacks are copied to it, and which are computed by the processor where they lie.

Pure arithmetic; which rule suits a machine is measured (machine/miss_rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MissRule:
    """What happens to a token's missing pages of a layer, for people, and how many of them are copied.

    copied_share: of them, rounded down. Copies and the processor work at the same time.
    """

    description: str
    copied_share: float

    @property
    def computes(self) -> bool:
        """Whether the processor may compute some."""
        return self.copied_share < 1

    def num_to_copy(self, num_missing: int) -> int:
        """Of so many missing pages."""
        return int(num_missing * self.copied_share)


FETCH = MissRule("what it lacks is copied to it", 1.0)
COMPUTE = MissRule("what it lacks is computed by the processor", 0.0)
SPLIT = MissRule("half of what it lacks is copied to it, the rest computed by the processor", 0.5)
MISS_RULES: Mapping[str, MissRule] = {"fetch": FETCH, "compute": COMPUTE, "split": SPLIT}
