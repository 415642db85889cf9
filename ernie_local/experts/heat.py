"""Scores how often and how recently each expert was chosen, and adapts how fast scores decay.

A score is a count that decays with every step, whether it decodes one sequence's token or those of several.
With decay 1 the order is that of counts (LFU), with decay 0
that of the last use (LRU). `AdaptiveHeat` tries several decays and follows the one with the most hits.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence

from ernie_local.experts.keys import ExpertKey

# With decay 0, a use counts 2**64 times one a token earlier.
_LRU_FADING = 64.0
# A prompt counts as this many decoded tokens, however long it is: answers choose other experts than the
# question does, and images choose none of those that answers do.
_PROMPT_TOKENS = 4.0
# Memory of the candidates: the last use only, about 20 tokens, about 200.
DECAYS = (0.0, 0.95, 0.995)
_FIRST = 1  # until there is something to compare
FIRST_DECAY = DECAYS[_FIRST]
# What is left of a token's hits one token later: some hundred tokens decide.
_HIT_DECAY = 0.99
# Another decay must have this share more hits: each change sorts all pages again.
_MARGIN = 0.01
_MOST_LAYERS = 9  # in which hits are counted


class Heat:
    """The sum over an expert's uses of decay to the power of the tokens since then.

    Kept as the logarithm of what the sum would be at token 0: numbers grow by uses alone, so comparing two of
    them needs no clock.
    """

    def __init__(self, decay: float) -> None:
        """decay: 0 to 1, what is left of a use one token later."""
        assert 0 <= decay <= 1, decay
        self.decay = decay
        self._fading = min(-math.log2(decay), _LRU_FADING) if decay > 0 else _LRU_FADING
        self._faded = 0.0
        self._levels: dict[ExpertKey, float] = {}

    def advance(self) -> bool:
        """A decoded token begins, or a prompt. Gives back whether another order counts from now on: never."""
        self._faded += self._fading
        return False

    def touch(self, keys: Sequence[ExpertKey]) -> None:
        """Decoded tokens chose these experts of a layer, each as often as it stands there."""
        for key in keys:
            self._add(key, 1.0)

    def touch_in_prompt(self, key: ExpertKey, share: float) -> None:
        """This share of the prompt's tokens of the bank chose the expert."""
        self._add(key, share * _PROMPT_TOKENS)

    def level(self, key: ExpertKey) -> float:
        """Greater for a hotter expert; minus infinity for one that was never chosen."""
        return self._levels.get(key, -math.inf)

    def _add(self, key: ExpertKey, amount: float) -> None:
        before = self._levels.get(key)
        if before is not None:
            amount += 2.0 ** (before - self._faded)
        self._levels[key] = math.log2(amount) + self._faded


class _ShadowCache:
    """Counts the hits of a cache ordered by one decay: a textbook cache of pages without content."""

    def __init__(self, heat: Heat, num_slots: int) -> None:
        self.heat = heat
        self.hits = 0.0
        self._num_slots = num_slots
        self._resident: set[ExpertKey] = set()
        self._coldest: list[tuple[float, ExpertKey]] = []  # each page once, with a level that it had

    def use(self, keys: Collection[ExpertKey]) -> int:
        """How many of these, which are wanted together, are resident; afterwards all are."""
        missing = [key for key in keys if key not in self._resident]
        held: list[tuple[float, ExpertKey]] = []
        while len(self._resident) + len(missing) > self._num_slots and self._coldest:
            level, key = heapq.heappop(self._coldest)
            if self.heat.level(key) > level:
                heapq.heappush(self._coldest, (self.heat.level(key), key))
            elif key in keys:
                held.append((level, key))
            else:
                self._resident.remove(key)
        for key in missing:
            held.append((self.heat.level(key), key))
            self._resident.add(key)
        for entry in held:
            heapq.heappush(self._coldest, entry)
        return len(keys) - len(missing)


class AdaptiveHeat:
    """Has Heat's methods; its decay is found while the model runs, as it depends on how steady routing is."""

    def __init__(self, layer_ids: Sequence[int], num_slots: int) -> None:
        """num_slots: for text pages of all these layers."""
        watched = layer_ids[:: -(-len(layer_ids) // _MOST_LAYERS)]
        self._watched = frozenset(watched)
        num_watched_slots = max(1, num_slots * len(watched) // len(layer_ids))
        self._caches = [_ShadowCache(Heat(decay), num_watched_slots) for decay in DECAYS]
        self._chosen = self._caches[_FIRST]
        self._uses = 0.0

    @property
    def decay(self) -> float:
        """The one that counts now."""
        return self._chosen.heat.decay

    def advance(self) -> bool:
        """A decoded token begins, or a prompt. The decay counts from now on that had the most hits lately.

        Gives back whether it is another one.
        """
        self._uses *= _HIT_DECAY
        for cache in self._caches:
            cache.hits *= _HIT_DECAY
            cache.heat.advance()
        best = max(self._caches, key=lambda cache: cache.hits)
        if best.hits <= self._chosen.hits + _MARGIN * self._uses:
            return False
        self._chosen = best
        return True

    def touch(self, keys: Sequence[ExpertKey]) -> None:
        """As Heat.touch. Of several tokens all together want a page once."""
        is_watched = self._is_watched(keys[0])
        wanted = dict.fromkeys(keys)
        self._uses += is_watched * len(wanted)
        for cache in self._caches:
            cache.heat.touch(keys)
            if is_watched:
                cache.hits += cache.use(wanted)

    def touch_in_prompt(self, key: ExpertKey, share: float) -> None:
        """This share of the prompt's tokens of the bank chose the expert."""
        for cache in self._caches:
            cache.heat.touch_in_prompt(key, share)
            if self._is_watched(key):
                cache.use((key,))

    def level(self, key: ExpertKey) -> float:
        """Greater for a hotter expert; comparable until `advance` is true."""
        return self._chosen.heat.level(key)

    def _is_watched(self, key: ExpertKey) -> bool:
        return key.bank == "text" and key.layer_id in self._watched
