"""How often and how lately each expert was chosen, as one number: a count that decays with every token.

Owns the numbers, for all experts, in memory or not. Knows nothing of slots. With decay 1 the order is that of
counts (LFU), with decay 0 that of the last use (LRU).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ernie_local.checkpoint.names import Bank

# Two to this power: so much more a use counts than one a token earlier, where only the last one counts.
_FORGETFUL = 64.0
DEFAULT_DECAY = 0.98


class ExpertKey(NamedTuple):
    """One routed expert of the model."""

    layer_id: int
    bank: Bank
    expert_id: int


class Heat:
    """The sum over an expert's uses of decay to the power of the tokens since then.

    Kept as the logarithm of what the sum would be at token 0: numbers grow by uses alone, so that their
    order needs no look at the clock.
    """

    def __init__(self, decay: float = DEFAULT_DECAY) -> None:
        """decay: 0 to 1, what is left of a use one token later."""
        assert 0 <= decay <= 1, decay
        self._decay = decay
        self._fading = min(-math.log2(decay), _FORGETFUL) if decay > 0 else _FORGETFUL
        self._now = 0
        self._levels: dict[ExpertKey, float] = {}

    def advance(self, num_tokens: int) -> None:
        """So many tokens begin; what `touch` says is about them."""
        self._now += num_tokens

    def touch(self, key: ExpertKey, num_uses: int = 1, num_tokens: int = 1) -> float:
        """`num_uses` of the last `num_tokens` tokens chose the expert, evenly spread. The new level."""
        amount = float(num_uses)
        if num_tokens > 1 and self._decay < 1:
            spread = (1 - self._decay**num_tokens) / (1 - self._decay)
            amount = num_uses / num_tokens * spread
        faded = self._fading * self._now
        before = self._levels.get(key)
        if before is not None:
            amount += 2.0 ** (before - faded)
        level = math.log2(amount) + faded
        self._levels[key] = level
        return level

    def level(self, key: ExpertKey) -> float:
        """Greater for a hotter expert; minus infinity for one that was never chosen."""
        return self._levels.get(key, -math.inf)
