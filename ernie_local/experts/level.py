"""Joins a cache of pages with the memory that its offsets mean, and computes experts from there.

RAM is one level, a GPU's memory another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import numpy as np
import torch

from ernie_local.config import Bank
from ernie_local.experts.cache import PageCache
from ernie_local.experts.device import HOST, Device, Event
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.memory import PageMemory
from ernie_local.experts.page_math import PageMath
from ernie_local.kernels.checks import ABSENT_SLOT
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


_Table = tuple[int, Bank, bool]


class PlaceTables:
    """The units of a memory at which pages begin, ABSENT_SLOT for experts without one."""

    def __init__(self, experts: Iterable[ExpertKey], send: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """experts: all that have pages. send: Device.send of who computes from them."""
        sizes: dict[_Table, int] = {}
        for key in experts:
            table = _table(key)
            sizes[table] = max(sizes.get(table, 0), key.expert_id + 1)
        # Numbers are set one by one, which numpy does at a tenth of torch's price; both see one memory.
        self._numbers = {table: np.full(size, ABSENT_SLOT, dtype=np.int64) for table, size in sizes.items()}
        self._tables = {table: torch.from_numpy(numbers) for table, numbers in self._numbers.items()}
        self._send = send
        self._sent: dict[_Table, torch.Tensor] = {}  # those that have not changed since

    def move(self, key: ExpertKey, offset: int | None) -> None:
        """The page can be used at this byte from now on; None: not any more."""
        place = ABSENT_SLOT if offset is None else offset // UNIT_BYTES
        table = _table(key)
        self._numbers[table][key.expert_id] = place
        self._sent.pop(table, None)

    def all(self, layer_id: int, bank: Bank) -> torch.Tensor:
        """(experts,) int64, of every page but small ones; changes with the next page that comes or goes."""
        table = (layer_id, bank, False)
        if table not in self._sent:
            self._sent[table] = self._send(self._tables[table])
        return self._sent[table]

    def some(self, layer_id: int, bank: Bank, keys: Iterable[ExpertKey]) -> torch.Tensor:
        """(experts,) int64, of these pages alone, of which each is another expert's."""
        table = np.full_like(self._numbers[layer_id, bank, False], ABSENT_SLOT)
        for key in keys:
            table[key.expert_id] = self._numbers[_table(key)][key.expert_id]
        return self._send(torch.from_numpy(table))


def _table(key: ExpertKey) -> _Table:
    return key.layer_id, key.bank, key.is_small


_GRAIN = 4096  # bytes; pages begin at multiples of it
# For an older one a younger one is waited for that surely lies behind it: no two are noted in another order
# than they were given in that are further apart than pages can be on their way at a time.
_KEPT_EVENTS = 256
_SURELY_LATER = 128


class LastUses:
    """By range of bytes, the last event that it has been noted with."""

    def __init__(self, num_bytes: int) -> None:
        # Not backed by memory before something is noted.
        self._numbers = np.zeros(num_bytes // _GRAIN, dtype=np.int32)
        self._count = 0
        self._events: deque[tuple[int, Event]] = deque(maxlen=_KEPT_EVENTS)

    def note(self, ranges: Iterable[tuple[int, int]], event: Event) -> None:
        """The bytes of these ranges, (first, number), are wanted until the event; it is the latest so far."""
        self._count += 1
        self._events.append((self._count, event))
        for first, num_bytes in ranges:
            self._numbers[first // _GRAIN : -(-(first + num_bytes) // _GRAIN)] = self._count

    def find(self, first: int, num_bytes: int) -> Event | None:
        """With what this range may be overwritten; None if nobody has used it."""
        number = int(self._numbers[first // _GRAIN : -(-(first + num_bytes) // _GRAIN)].max())
        if not number:
            return None
        oldest = self._events[0][0]
        return self._events[number - oldest if number >= oldest else _SURELY_LATER][1]
