"""One memory of pages: what lies in it, where, and the computing from there. RAM is one, a GPU's another.

Knows nothing of where pages come from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from ernie_local.config import Bank
from ernie_local.experts.device import HOST, Device
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.last_uses import LastUses
from ernie_local.experts.page_cache import PageCache
from ernie_local.experts.page_math import PageMath
from ernie_local.experts.page_memory import PageMemory
from ernie_local.experts.place_tables import PlaceTables
from ernie_local.model.moe import RoutedTokens


class Memory(Protocol):
    """`bytes`: (num_bytes,) uint8; `units`: the same as (units, UNIT_BYTES)."""

    bytes: torch.Tensor
    units: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Of the whole allocation."""
        ...


class PageLevel:
    """A cache, and the memory that its offsets mean."""

    def __init__(
        self,
        cache: PageCache,
        memory: Memory,
        math: Mapping[Bank, PageMath],
        page_bytes: Mapping[ExpertKey, int],
        device: Device = HOST,
    ) -> None:
        """page_bytes: of all that have pages. device: what computes from here.

        The cache is empty, and tells this level of pages from now on.
        """
        self.cache = cache
        self.memory = memory
        self.takes_shared_page = all(one.takes_shared_page for one in math.values())
        # By what a device was given and may not have done yet: computing from here, or copying from here.
        self.last_uses = LastUses(memory.num_bytes)
        self._math = math
        self._page_bytes = page_bytes
        self._device = device
        self._places = PlaceTables(page_bytes, device.send)
        cache.on_move = self._places.move

    def range(self, key: ExpertKey) -> tuple[int, int]:
        """First byte and number of bytes of the page, there or on its way."""
        return self.cache.offset(key), self._page_bytes[key]

    def page(self, key: ExpertKey) -> torch.Tensor:
        """(page_bytes,) uint8: where the page lies, or will when it has come."""
        start, num_bytes = self.range(key)
        return self.memory.bytes[start : start + num_bytes]

    def add(self, output: torch.Tensor, tokens: RoutedTokens, among: Collection[ExpertKey]) -> None:
        """Add to each token's row its experts: `among`, all there and none small. See PageMath.add."""
        places = self._places.all(tokens.layer_id, tokens.bank)
        self._math[tokens.bank].add(output, self.memory.units, tokens, places)
        self._note_use(among)

    def add_some(self, output: torch.Tensor, tokens: RoutedTokens, among: Collection[ExpertKey]) -> None:
        """As `add`, those of each token's experts that are among these, by these pages, which are there."""
        places = self._places.some(tokens.layer_id, tokens.bank, among)
        self._math[tokens.bank].add(output, self.memory.units, tokens, places)
        self._note_use(among)

    def use_frames(self, num_frames: int) -> None:
        """Let the system have the memory of what is more, or take it again. No page is in use."""
        assert isinstance(self.memory, PageMemory), "of a GPU's memory nothing goes back"
        slots = self.cache.slots
        while slots.num_frames > num_frames:
            frame = self.cache.shrink()
            assert frame is not None, "between forwards no page is in use"
            self.memory.hand_back(frame * slots.frame_bytes, slots.frame_bytes)
        while slots.num_frames < num_frames and slots.restore() is not None:
            pass

    def keep_first_frames(self, num_frames: int) -> None:
        """Have pages in the first so many frames, as far as there are any, and no others. No page is in use.

        Whoever has the memory behind them uses it by what the device is given after this call, and before the
        next one: then pages come back there, each after that work is done.
        """
        slots = self.cache.slots
        self.cache.keep_first(num_frames)
        event = self._device.mark() if slots.num_frames < num_frames else None
        while slots.num_frames < num_frames and (frame := slots.restore()) is not None:
            if event is not None:
                self.last_uses.note([(frame * slots.frame_bytes, slots.frame_bytes)], event)

    def _note_use(self, keys: Collection[ExpertKey]) -> None:
        event = self._device.mark()
        if event is not None:
            self.last_uses.note([self.range(key) for key in keys], event)
