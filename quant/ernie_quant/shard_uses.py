"""Decides which file of the source is fetched next, and which one makes room for it.

Knows names and stages only. As many files are kept as a stage needs at once, but at least MOST_SHARDS; where
that is too few for all that is needed later, the one that is needed last goes, and is fetched again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

MOST_SHARDS = 4


@dataclass(frozen=True, slots=True)
class ShardUses:
    """stages: names of the files that each stage reads, in the order of their use; none for one that is done.

    keeps: whether files stay, however many there are.
    """

    stages: Sequence[Sequence[str]]
    keeps: bool = False

    @property
    def most(self) -> int:
        """The most files that are there at any time, with the one that is being fetched."""
        if self.keeps:
            return len(self.needed(0))
        return max([MOST_SHARDS, *map(len, self.stages)])

    def needed(self, stage: int) -> dict[str, int]:
        """The files that are needed from `stage` on in the order of use, each with its next stage."""
        uses: dict[str, int] = {}
        for later, names in enumerate(self.stages[stage:], stage):
            for name in names:
                uses.setdefault(name, later)
        return uses

    def next_fetch(self, stage: int, present: Collection[str]) -> tuple[str, str | None] | None:
        """The file to fetch, and the one to delete before; None while nothing can be fetched in `stage`."""
        uses = self.needed(stage)
        wanted = next((name for name in uses if name not in present), None)
        if wanted is None:
            return None
        if len(present) < self.most:
            return wanted, None
        if uses[wanted] > stage:  # ahead of time, it is not worth another fetch of what goes
            return None
        return wanted, max(present, key=lambda name: uses.get(name, len(self.stages)))

    def fetches(self, present: Collection[str]) -> list[str]:
        """All files that will be fetched, in order, where `present` are there already."""
        there, fetched = set(present), list[str]()
        for stage in range(len(self.stages)):
            there &= self.needed(stage).keys()
            while (step := self.next_fetch(stage, there)) is not None:
                wanted, dropped = step
                there.discard(dropped or "")
                there.add(wanted)
                fetched.append(wanted)
        return fetched
