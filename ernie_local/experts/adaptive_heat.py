"""Heat whose decay is found out while the model runs: of several, the one that would have found most counts.

Owns the decays that compete and the small make-believe memories in which they do. Knows nothing of slots.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

from ernie_local.experts.heat import ExpertKey, Heat

# The last use alone, some tens of tokens, some hundreds.
DECAYS = (0.0, 0.95, 0.995)
_FIRST = 1  # until there is something to compare
FIRST_DECAY = DECAYS[_FIRST]
# What is left of a token's finds one token later: some hundred tokens decide.
_FADING = 0.99
# Another decay must find so many more of a hundred experts; each change has all pages sorted anew.
_MARGIN = 0.01
_MOST_LAYERS = 9  # of which finds are counted


class _Rehearsal:
    """What a memory ordered by one decay would have found: a textbook cache of pages without content."""

    def __init__(self, heat: Heat, num_slots: int) -> None:
        self.heat = heat
        self.finds = 0.0
        self._num_slots = num_slots
        self._there: set[ExpertKey] = set()
        self._coldest: list[tuple[float, ExpertKey]] = []  # each page once, with a level that it had

    def use(self, keys: Collection[ExpertKey]) -> int:
        """How many of these, which are wanted together, are there; afterwards all are."""
        missing = [key for key in keys if key not in self._there]
        held: list[tuple[float, ExpertKey]] = []
        while len(self._there) + len(missing) > self._num_slots and self._coldest:
            level, key = heapq.heappop(self._coldest)
            if self.heat.level(key) > level:
                heapq.heappush(self._coldest, (self.heat.level(key), key))
            elif key in keys:
                held.append((level, key))
            else:
                self._there.remove(key)
        for key in missing:
            held.append((self.heat.level(key), key))
            self._there.add(key)
        for entry in held:
            heapq.heappush(self._coldest, entry)
        return len(keys) - len(missing)


class AdaptiveHeat:
    """As Heat. A decay is only as good as the routing is steady, and nobody knows that beforehand."""

    def __init__(self, layer_ids: Sequence[int], num_slots: int) -> None:
        """num_slots: for text pages of all these layers."""
        watched = layer_ids[:: -(-len(layer_ids) // _MOST_LAYERS)]
        self._watched = frozenset(watched)
        num_watched_slots = max(1, num_slots * len(watched) // len(layer_ids))
        self._rehearsals = [_Rehearsal(Heat(decay), num_watched_slots) for decay in DECAYS]
        self._chosen = self._rehearsals[_FIRST]
        self._uses = 0.0

    @property
    def decay(self) -> float:
        """The one that counts now."""
        return self._chosen.heat.decay

    def advance(self) -> None:
        """See Heat.advance."""
        self._uses *= _FADING
        for rehearsal in self._rehearsals:
            rehearsal.finds *= _FADING
            rehearsal.heat.advance()

    def touch(self, keys: Sequence[ExpertKey]) -> None:
        """See Heat.touch."""
        is_watched = self._is_watched(keys[0])
        self._uses += is_watched * len(keys)
        for rehearsal in self._rehearsals:
            rehearsal.heat.touch(keys)
            if is_watched:
                rehearsal.finds += rehearsal.use(keys)

    def touch_in_prompt(self, key: ExpertKey, share: float) -> None:
        """See Heat.touch_in_prompt."""
        for rehearsal in self._rehearsals:
            rehearsal.heat.touch_in_prompt(key, share)
            if self._is_watched(key):
                rehearsal.use((key,))

    def _is_watched(self, key: ExpertKey) -> bool:
        return key.bank == "text" and key.layer_id in self._watched

    def level(self, key: ExpertKey) -> float:
        """See Heat.level; only as long as `reconsider` has not said that all are others now."""
        return self._chosen.heat.level(key)

    def reconsider(self) -> bool:
        """Let the decay count that found most lately; whether it is another one."""
        best = max(self._rehearsals, key=lambda rehearsal: rehearsal.finds)
        if best.finds <= self._chosen.finds + _MARGIN * self._uses:
            return False
        self._chosen = best
        return True
