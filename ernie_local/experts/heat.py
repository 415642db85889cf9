"""How often and how lately each expert was chosen, as one number: a count that decays with every token.

Owns the numbers, for all experts, in memory or not. Knows nothing of slots. With decay 1 the order is that of
counts (LFU), with decay 0 that of the last use (LRU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ernie_local.config import Bank

# Two to this power: so much more a use counts than one a token earlier, where only the last one counts.
_FORGETFUL = 64.0
# A prompt counts as so many decoded tokens, however long it is: answers choose other experts than what is
# asked, and images none of those that answers choose.
_PROMPT_TOKENS = 4.0


class ExpertKey(NamedTuple):
    """One routed expert of the model; is_small: its second, small page, where a checkpoint has them."""

    layer_id: int
    bank: Bank
    expert_id: int
    is_small: bool = False


class Heat:
    """The sum over an expert's uses of decay to the power of the tokens since then.

    Kept as the logarithm of what the sum would be at token 0: numbers grow by uses alone, so that their
    order needs no look at the clock.
    """

    def __init__(self, decay: float) -> None:
        """decay: 0 to 1, what is left of a use one token later."""
        assert 0 <= decay <= 1, decay
        self.decay = decay
        self._fading = min(-math.log2(decay), _FORGETFUL) if decay > 0 else _FORGETFUL
        self._faded = 0.0
        self._levels: dict[ExpertKey, float] = {}

    def advance(self) -> None:
        """A decoded token begins, or a prompt; what `touch` says is about it."""
        self._faded += self._fading

    def touch(self, keys: Sequence[ExpertKey]) -> None:
        """The token chose these experts of a layer."""
        for key in keys:
            self._add(key, 1.0)

    def touch_in_prompt(self, key: ExpertKey, share: float) -> None:
        """This share of the prompt's tokens of the bank chose the expert."""
        self._add(key, share * _PROMPT_TOKENS)

    def level(self, key: ExpertKey) -> float:
        """Greater for a hotter expert; minus infinity for one that was never chosen."""
        return self._levels.get(key, -math.inf)

    def reconsider(self) -> bool:
        """Whether from now on another order counts: never."""
        return False

    def _add(self, key: ExpertKey, amount: float) -> None:
        before = self._levels.get(key)
        if before is not None:
            amount += 2.0 ** (before - self._faded)
        self._levels[key] = math.log2(amount) + self._faded
