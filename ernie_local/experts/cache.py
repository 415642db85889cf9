"""Decides which experts' pages stay in a memory of slots, and which page goes when another one comes.

Pure Python over ids. A page stays until another one needs its slot; then the coldest page goes. Pages that
are seldom used pass through the last few slots: they are the coldest, so they never evict hot ones.

The life of a page: `reserve` gives it a slot while it is in flight, `commit` makes it resident and pinned,
`admit` unpins it and makes it a candidate for eviction, `evict` frees its slot.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable

from ernie_local.config import Bank
from ernie_local.experts.heat import AdaptiveHeat, Heat
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.slots import Slot, SlotMap

# Called when a page becomes usable (with its offset) or is evicted (with None).
OnMove = Callable[[ExpertKey, int | None], None]


class PageCache:
    """Pages by expert. A page that is pinned or in flight is never evicted."""

    def __init__(
        self,
        slots: SlotMap,
        class_of: Callable[[ExpertKey], int],
        heat: Heat | AdaptiveHeat,
        spare_slots: int,
        layer_floor: int,
    ) -> None:
        """class_of: of a page. spare_slots: of each class, kept free in a prompt for pages in flight.

        layer_floor: pages of a layer's text bank that pages of other layers may not evict.
        """
        self.slots = slots
        self.heat = heat
        self.on_move: OnMove | None = None
        self._class_of = class_of
        self._spare_slots = spare_slots
        self._layer_floor = layer_floor
        self._slots: dict[ExpertKey, Slot] = {}  # of resident pages and of those in flight
        # Only asked, never iterated: its order differs from run to run, and with it which of two equals goes.
        self._resident: set[ExpertKey] = set()
        self._in_flight: dict[ExpertKey, None] = {}
        # A view of the pages that have a slot and are not resident yet, in the order of `reserve`.
        self.in_flight = self._in_flight.keys()
        self._pins: Counter[ExpertKey] = Counter()
        # Resident pages by layer, bank and whether they are small.
        self._pages_of: defaultdict[tuple[int, Bank, bool], dict[ExpertKey, None]] = defaultdict(dict)
        self._num_vision_pages = 0
        # Of each class: (heat when it was put there, page). Heat only grows, so the first is checked again.
        self._candidates: list[list[tuple[float, ExpertKey]]] = [[] for _ in slots.classes]
        self._queued: set[ExpertKey] = set()  # those in a heap

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether the page is resident."""
        return key in self._resident

    def has_all(self, keys: Iterable[ExpertKey]) -> bool:
        """Whether all of these pages are resident."""
        return self._resident.issuperset(keys)

    def keys(self) -> list[ExpertKey]:
        """Resident pages, in the order in which they came."""
        return [key for key in self._slots if key in self._resident]

    @property
    def has_pins(self) -> bool:
        """Whether any page is pinned."""
        return bool(self._pins)

    def offset(self, key: ExpertKey) -> int:
        """First byte of the page, resident or in flight."""
        return self.slots.offset(self._class_of(key), self._slots[key])

    def advance(self) -> None:
        """A forward begins."""
        if self.heat.advance():
            self._queue_all()

    def pin(self, keys: Iterable[ExpertKey]) -> None:
        """Keep these pages until `unpin`."""
        self._pins.update(keys)

    def unpin(self, keys: Iterable[ExpertKey]) -> None:
        """Undo `pin`."""
        for key in keys:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def reserve(self, key: ExpertKey, *, is_urgent: bool = False) -> bool:
        """Give a slot to a page that is to be read, evicting another one if need be. False if none can go.

        is_urgent: a token waits for it. Then pages of vision go first, which decode does not need, and no
        layer's floor counts where nothing else can go.
        """
        assert key not in self._slots, key
        size_class = self._class_of(key)
        slot = self.slots.allocate(size_class)
        if slot is None and self._make_room(size_class, key, is_urgent):
            slot = self.slots.allocate(size_class)
        if slot is None:
            return False
        self._slots[key] = slot
        self._in_flight[key] = None
        return True

    def would_admit(self, key: ExpertKey) -> bool:
        """Whether a page that is not resident is hotter than what would go for it, or has a slot free."""
        size_class = self._class_of(key)
        if self.slots.num_available(size_class):
            return True
        coldest = self._coldest_page(size_class, key, is_urgent=False)
        if coldest is None:
            return False
        self._queue(size_class, coldest)
        return self.heat.level(coldest) < self.heat.level(key)

    def commit(self, key: ExpertKey) -> None:
        """The page has been read: it is resident, and pinned until it is admitted."""
        del self._in_flight[key]
        self._resident.add(key)
        self.pin([key])
        self._note(key)
        if self.on_move is not None:
            self.on_move(key, self.offset(key))

    def abort(self) -> None:
        """Unpin every page, and free the slots of those that are not resident: after an error or Ctrl-C.

        That may have come between any two steps. Which slots hold whole pages is certain all the same, since
        a page is resident neither before it has been read nor while it is evicted; all else is worked out
        again.
        """
        self._slots = {key: slot for key, slot in self._slots.items() if key in self._resident}
        self._resident.intersection_update(self._slots)
        self.slots.restore((self._class_of(key), slot) for key, slot in self._slots.items())
        self._in_flight.clear()
        self._pins.clear()
        self._pages_of.clear()
        self._num_vision_pages = 0
        for key in self._slots:
            self._note(key)
            if self.on_move is not None:
                self.on_move(key, self.offset(key))
        self._queue_all()

    def admit(self, key: ExpertKey) -> None:
        """The committed page has been used. It stays, and is the first to go if it is the coldest."""
        self.unpin([key])
        self._queue(self._class_of(key), key)

    def admit_from_prompt(self, key: ExpertKey, most_pages: int) -> bool:
        """As `admit`, for a prompt, which visits every layer: no other layer loses a page to this one.

        The page stays if a slot is left over and the layer's bank has fewer than `most_pages`, or in place of
        a colder page of its own layer and size. Gives back whether it stays.
        """
        self.unpin([key])
        size_class = self._class_of(key)
        mates = self._mates(key)
        # Without `_reclaim`: another class may need its borrowed frames again in this prompt.
        has_room = self.slots.num_available(size_class) >= self._spare_slots
        if not has_room or len(mates) > most_pages:
            idle = (mate for mate in mates if mate not in self._pins and self._class_of(mate) == size_class)
            victim = min(idle, key=self.heat.level)
            self.evict(victim)
            if victim == key:
                return False
        self._queue(size_class, key)
        return True

    def evict(self, key: ExpertKey) -> None:
        """Forget a resident page that is not pinned, and free its slot."""
        assert key not in self._pins, key
        assert key not in self._in_flight, key
        self._resident.remove(key)
        del self._mates(key)[key]
        self._num_vision_pages -= key.bank == "vision"
        self._free(key)
        if self.on_move is not None:
            self.on_move(key, None)

    def remove_coldest_frame(self) -> int | None:
        """Take the frame whose hottest page is the coldest out of use; None if every frame is in use."""

        def hottest(keys: list[ExpertKey]) -> float:
            # Vision pages serve images that may never come.
            return max(self.heat.level(key) if key.bank == "text" else -math.inf for key in keys)

        if not self.slots.num_free_frames:
            idle = [keys for index in range(len(self.slots.classes)) for keys in self._idle_frames(index)]
            if not idle:
                return None
            for key in min(idle, key=hottest):
                self.evict(key)
        return self.slots.remove_frame()

    def keep_frames(self, kept: Collection[int]) -> None:
        """Take all frames but these out of use. No page is pinned or in flight.

        Not for a cache that `remove_coldest_frame` has been used on.
        """
        for key, slot in list(self._slots.items()):
            if slot.frame not in kept:
                self.evict(key)
        removed = self.slots.removed_frames
        for frame in range(self.slots.num_frames + len(removed)):
            if frame not in kept and frame not in removed:
                self.slots.remove_frame(frame)

    def clear(self) -> None:
        """Forget every page. None is pinned or in flight."""
        for key in list(self._slots):
            self.evict(key)

    def _note(self, key: ExpertKey) -> None:
        mates = self._mates(key)
        self._num_vision_pages += key.bank == "vision" and key not in mates
        mates[key] = None

    def _mates(self, key: ExpertKey) -> dict[ExpertKey, None]:
        """Pages of its layer and kind."""
        return self._pages_of[key.layer_id, key.bank, key.is_small]

    def _free(self, key: ExpertKey) -> None:
        self.slots.free(self._class_of(key), self._slots.pop(key))

    def _make_room(self, size_class: int, coming: ExpertKey, is_urgent: bool) -> bool:
        """Free a slot of a class that has none."""
        if self._reclaim(size_class) or (is_urgent and self._empty_vision_frame(coming)):
            return True
        victim = self._coldest_page(size_class, coming, is_urgent)
        if victim is None:
            return False
        self.evict(victim)
        return True

    def _reclaim(self, size_class: int) -> bool:
        """Empty a frame of a class that holds more than its own, for one that holds less."""
        if self.slots.num_over(size_class) >= 0:
            return False
        lenders = (index for index in range(len(self.slots.classes)) if self.slots.num_over(index) > 0)
        return self._evict_first(keys for index in lenders for keys in self._idle_frames(index))

    def _empty_vision_frame(self, coming: ExpertKey) -> bool:
        """Empty a frame of vision pages for a text page; its owner asks for it again in the next prompt."""
        if coming.bank == "vision" or not self._num_vision_pages:
            return False
        every = (keys for index in range(len(self.slots.classes)) for keys in self._idle_frames(index))
        return self._evict_first(keys for keys in every if keys[0].bank == "vision")

    def _evict_first(self, frames: Iterable[list[ExpertKey]]) -> bool:
        """Evict the pages of the first of these frames. False if there is none."""
        keys = next(iter(frames), None)
        for key in keys or ():
            self.evict(key)
        return keys is not None

    def _idle_frames(self, size_class: int) -> Iterable[list[ExpertKey]]:
        """The pages of each frame of which none is pinned or in flight."""
        by_frame: dict[int, list[ExpertKey]] = {}
        for key, slot in self._slots.items():
            if self._class_of(key) == size_class:
                by_frame.setdefault(slot.frame, []).append(key)
        for keys in by_frame.values():
            if not any(key in self._pins or key in self._in_flight for key in keys):
                yield keys

    def _coldest_page(self, size_class: int, coming: ExpertKey, is_urgent: bool) -> ExpertKey | None:
        """The coldest page of the class that may go when `coming` comes."""
        heap = self._candidates[size_class]
        kept: list[ExpertKey] = []
        found: ExpertKey | None = None
        # Where slots of one size are few, all of them may hold pages that a floor protects.
        protected: ExpertKey | None = None
        while heap and found is None:
            level, key = heapq.heappop(heap)
            self._queued.discard(key)
            if key not in self:
                continue  # evicted since
            if self.heat.level(key) > level:
                self._queue(size_class, key)
            elif key not in self._pins and self._may_go(key, coming):
                found = key
            else:
                kept.append(key)
                if protected is None and key not in self._pins:
                    protected = key
        for key in kept:
            self._queue(size_class, key)
        return protected if found is None and is_urgent else found

    def _queue_all(self) -> None:
        for heap in self._candidates:
            heap.clear()
        self._queued.clear()
        for key in self._slots:
            self._queue(self._class_of(key), key)

    def _queue(self, size_class: int, key: ExpertKey) -> None:
        if key not in self._queued:
            self._queued.add(key)
            heapq.heappush(self._candidates[size_class], (self.heat.level(key), key))

    def _may_go(self, key: ExpertKey, coming: ExpertKey) -> bool:
        if key.layer_id == coming.layer_id or key.bank != "text" or key.is_small:
            return True
        return len(self._mates(key)) > self._layer_floor
