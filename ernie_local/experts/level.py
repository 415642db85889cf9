"""Joins a cache of pages with the memory that its offsets mean, and computes experts from there.

RAM is one level, a GPU's memory another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import torch

from ernie_local.config import Bank, BankKey
from ernie_local.experts.cache import PageCache
from ernie_local.experts.device import HOST, Device, Event, PageMemory
from ernie_local.experts.gpu_memory import GpuMemory
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.math import PageMath, page_call
from ernie_local.kernels.arguments import ABSENT_SLOT
from ernie_local.model.moe import RoutedTokens

_Table = tuple[int, Bank, bool]

_KEPT_EVENTS = 256
# Events older than the buffer are gone. Waiting for a newer one, this many places into the buffer, is safe:
# notes are out of order by at most the number of pages in flight.
_SURELY_LATER = 128


class PlaceTables:
    """The units of a memory at which each layer's pages begin, as operators want them: a table for each bank.

    ABSENT_SLOT stands for experts that are not resident. Follows a cache page by page, so that no table is
    made again for every token.
    """

    def __init__(self, experts: Iterable[ExpertKey], send: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """experts: all that have pages. send: Device.send of the device that computes from them."""
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
        """(experts,) int64, of every page but small ones; changes with the next page that moves."""
        table = (layer_id, bank, False)
        if table not in self._sent:
            self._sent[table] = self._send(self._tables[table])
        return self._sent[table]

    def some(self, layer_id: int, bank: Bank, keys: Iterable[ExpertKey]) -> torch.Tensor:
        """(experts,) int64, of these pages only, each of another expert."""
        table = np.full_like(self._numbers[layer_id, bank, False], ABSENT_SLOT)
        for key in keys:
            table[key.expert_id] = self._numbers[_table(key)][key.expert_id]
        return self._send(torch.from_numpy(table))


def _table(key: ExpertKey) -> _Table:
    return key.layer_id, key.bank, key.is_small


class LastUses:
    """By range of bytes, the last event that it has been noted with: after it the range may be overwritten.

    Events are of one stream, in its order.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_units = num_bytes // UNIT_BYTES
        self.clear()

    def clear(self) -> None:
        """All events are over."""
        # Not backed by memory before something is noted.
        self._numbers = np.zeros(self._num_units, dtype=np.int32)
        self._count = 0
        self._events: deque[tuple[int, Event]] = deque(maxlen=_KEPT_EVENTS)

    def note(self, ranges: Iterable[tuple[int, int]], event: Event) -> None:
        """The bytes of these ranges, (first, number), are used until the event; it is the latest so far."""
        self._count += 1
        self._events.append((self._count, event))
        for first, num_bytes in ranges:
            self._numbers[first // UNIT_BYTES : -(-(first + num_bytes) // UNIT_BYTES)] = self._count

    def find(self, first: int, num_bytes: int) -> Event | None:
        """The event after which this range may be overwritten; None if it was never used."""
        number = int(self._numbers[first // UNIT_BYTES : -(-(first + num_bytes) // UNIT_BYTES)].max())
        if not number:
            return None
        oldest = self._events[0][0]
        return self._events[number - oldest if number >= oldest else _SURELY_LATER][1]


class PageLevel:
    """A cache, and the memory that its offsets mean."""

    def __init__(
        self,
        cache: PageCache,
        memory: PageMemory | GpuMemory,
        math: Mapping[BankKey, PageMath],
        page_bytes: Mapping[ExpertKey, int],
        device: Device = HOST,
    ) -> None:
        """page_bytes: of all pages. device: what computes from here."""
        self.cache = cache
        self.memory = memory
        self.takes_shared_page = all(one.takes_shared_page for one in math.values())
        # Uses that a device may not have finished yet: computing from here, or copying from here.
        self.last_uses = LastUses(memory.num_bytes)
        self._places = PlaceTables(page_bytes, device.send)
        cache.on_move = self._places.move
        self._math = math
        self._page_bytes = page_bytes
        self._device = device

    def range(self, key: ExpertKey) -> tuple[int, int]:
        """First byte and number of bytes of the page, resident or in flight."""
        return self.cache.offset(key), self._page_bytes[key]

    def page(self, key: ExpertKey) -> torch.Tensor:
        """(page_bytes,) uint8: where the page lies, or will lie."""
        start, num_bytes = self.range(key)
        return self.memory.bytes[start : start + num_bytes]

    def add(self, output: torch.Tensor, tokens: RoutedTokens, among: Collection[ExpertKey]) -> None:
        """Add to each token's row its experts: `among`, all resident and none small. See PageMath.add."""
        self._add(output, tokens, among, self._places.all(tokens.layer_id, tokens.bank))

    def add_some(self, output: torch.Tensor, tokens: RoutedTokens, among: Collection[ExpertKey]) -> None:
        """As `add`, but only those of each token's experts whose pages are `among` these resident ones."""
        self._add(output, tokens, among, self._places.some(tokens.layer_id, tokens.bank, among))

    def _add(
        self, output: torch.Tensor, tokens: RoutedTokens, used: Collection[ExpertKey], places: torch.Tensor
    ) -> None:
        self._math[tokens.layer_id, tokens.bank].add(output, page_call(tokens, self.memory.units, places))
        event = self._device.mark()
        if event is not None:
            self.last_uses.note([self.range(key) for key in used], event)

    def use_frames(self, num_frames: int) -> None:
        """Keep the hottest frames, this many, and give the others' RAM to the system. No page is pinned."""
        assert isinstance(self.memory, PageMemory), "a GPU's memory goes back only as a whole"
        slots = self.cache.slots
        while slots.num_frames > num_frames:
            frame = self.cache.remove_coldest_frame()
            assert frame is not None, "between forwards no page is pinned"
            self.memory.discard(frame * slots.frame_bytes, slots.frame_bytes)
        while slots.num_frames < num_frames and slots.add_frame() is not None:
            pass

    def use_only_frames(self, wanted: Collection[int]) -> None:
        """Have pages only in these frames. No page is pinned or in flight.

        Others may have the memory of other frames until the next call, for work in the computing stream.
        Copies of pages into frames that come back wait for that work.
        """
        slots = self.cache.slots
        self.cache.keep_frames(wanted)
        back = [frame for frame in slots.removed_frames if frame in wanted]
        event = self._device.mark() if back else None
        for frame in reversed(back):
            slots.add_frame(frame)
        if event is not None:
            self.last_uses.note([(frame * slots.frame_bytes, slots.frame_bytes) for frame in back], event)
