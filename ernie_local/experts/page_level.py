"""One memory of pages: what lies in it, where, and the computing from there. RAM is one, a card's another.

Knows nothing of where pages come from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from ernie_local.checkpoint.names import Bank
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_cache import PageCache
from ernie_local.experts.page_math import PageMath, RoutedTokens
from ernie_local.experts.page_memory import PageMemory
from ernie_local.experts.place_tables import PlaceTables


class PageLevel:
    """A cache, and the memory that its offsets mean."""

    def __init__(
        self,
        cache: PageCache,
        memory: PageMemory,
        math: Mapping[Bank, PageMath],
        experts: Collection[ExpertKey],
    ) -> None:
        """experts: all that have pages. The cache is empty, and tells this level of pages from now on."""
        self.cache = cache
        self.memory = memory
        self.takes_shared_page = all(one.takes_shared_page for one in math.values())
        self._math = math
        self._places = PlaceTables(experts)
        cache.on_move = self._places.move

    def page(self, key: ExpertKey, page_bytes: int) -> torch.Tensor:
        """(page_bytes,) uint8: where the page lies, or will when it has come."""
        start = self.cache.offset(key)
        return self.memory.bytes[start : start + page_bytes]

    def add(self, output: torch.Tensor, tokens: RoutedTokens, shared_page: torch.Tensor | None) -> None:
        """Add to each token's row its experts, all of whose pages are there, none small. See PageMath.add."""
        places = self._places.all(tokens.layer_id, tokens.bank)
        self._math[tokens.bank].add(output, self.memory.units, tokens, places, shared_page)

    def add_some(
        self,
        output: torch.Tensor,
        tokens: RoutedTokens,
        among: Collection[ExpertKey],
        shared_page: torch.Tensor | None,
    ) -> None:
        """As `add`, those of each token's experts that are among these, by these pages, which are there."""
        places = self._places.some(tokens.layer_id, tokens.bank, among)
        self._math[tokens.bank].add(output, self.memory.units, tokens, places, shared_page)

    def use_frames(self, num_frames: int) -> None:
        """Let the system have the memory of what is more, or take it again. No page is in use."""
        slots = self.cache.slots
        while slots.num_frames > num_frames:
            frame = self.cache.shrink()
            assert frame is not None, "between forwards no page is in use"
            self.memory.hand_back(frame * slots.frame_bytes, slots.frame_bytes)
        while slots.num_frames < num_frames and slots.restore() is not None:
            pass
