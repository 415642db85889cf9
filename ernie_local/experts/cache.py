"""Decides which experts' pages stay in a memory of slots, and which page goes when another one comes.

Pure Python over ids. A page stays until another one needs its slot; then the coldest page goes. Pages that
are seldom used pass through the last few slots: they are the coldest, so they never evict hot ones.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from ernie_local.config import Bank
from ernie_local.experts.heat import AdaptiveHeat, Heat
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.slots import Slot, SlotMap


class PageCache:
    """Pages by expert. A page in use, or on its way, is never evicted."""

    def __init__(
        self,
        slots: SlotMap,
        class_of: Callable[[ExpertKey], int],
        heat: Heat | AdaptiveHeat,
        spare_slots: int,
        layer_floor: int,
    ) -> None:
        """class_of: of a page. spare_slots: of each class, kept free in a prompt for pages on their way.

        layer_floor: pages of a layer's text bank that pages of other layers may not drive out.
        """
        self.slots = slots
        self.heat = heat
        # Told of each page that can be used from now on, with its offset, or no more, with None.
        self.on_move: Callable[[ExpertKey, int | None], None] | None = None
        self._class_of = class_of
        self._spare_slots = spare_slots
        self._layer_floor = layer_floor
        self._places: dict[ExpertKey, Slot] = {}
        # A set may only be asked: its order differs from run to run, and with it which of two equals goes.
        self._there: set[ExpertKey] = set()
        self._coming: dict[ExpertKey, None] = {}
        self._in_use: Counter[ExpertKey] = Counter()
        # Those that are there, by layer, bank and whether they are small.
        self._pages_of: defaultdict[tuple[int, Bank, bool], dict[ExpertKey, None]] = defaultdict(dict)
        self._num_vision_pages = 0
        # Of each class: (level when it was put there, page). Levels only grow, so what lies on top is looked
        # up again before it is believed.
        self._coldest: list[list[tuple[float, ExpertKey]]] = [[] for _ in slots.classes]
        self._queued: set[ExpertKey] = set()  # those in a heap

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether the page is there and can be used."""
        return key in self._there

    def holds(self, keys: Iterable[ExpertKey]) -> bool:
        """Whether all of these pages are there and can be used."""
        return self._there.issuperset(keys)

    def __len__(self) -> int:
        """Pages that are there."""
        return len(self._there)

    def keys(self) -> list[ExpertKey]:
        """Experts whose pages are there."""
        return [key for key in self._places if key in self._there]

    def offset(self, key: ExpertKey) -> int:
        """First byte of the page, there or on its way."""
        return self.slots.offset(self._class_of(key), self._places[key])

    def advance(self) -> None:
        """A forward begins."""
        self.heat.advance()
        if self.heat.reconsider():
            for heap in self._coldest:
                heap.clear()
            self._queued.clear()
            for key in self._places:
                self._queue(self._class_of(key), key)

    def use(self, keys: Iterable[ExpertKey]) -> None:
        """Keep these pages where they are until `release`."""
        self._in_use.update(keys)

    def release(self, keys: Iterable[ExpertKey]) -> None:
        """Undo `use`."""
        for key in keys:
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]

    def expect(self, key: ExpertKey, *, is_urgent: bool = False) -> bool:
        """Take a slot for a page that is to be read, and hold it. False if all slots are in use.

        is_urgent: a token waits for it. Then pages of vision go first, which decode does not need, and no
        layer's floor counts where nothing else can go.
        """
        assert key not in self._places, key
        size_class = self._class_of(key)
        slot = self.slots.take(size_class)
        if slot is None and self._make_room(size_class, key, is_urgent):
            slot = self.slots.take(size_class)
        if slot is None:
            return False
        self._places[key] = slot
        self._coming[key] = None
        return True

    def gains(self, key: ExpertKey) -> bool:
        """Whether a page that is not there is hotter than what would go for it, or has a slot free."""
        size_class = self._class_of(key)
        if self.slots.num_available(size_class):
            return True
        coldest = self._coldest_page(size_class, key, is_urgent=False)
        if coldest is None:
            return False
        self._queue(size_class, coldest)
        return self.heat.level(coldest) < self.heat.level(key)

    def arrived(self, key: ExpertKey) -> None:
        """The page has been read; it is there, and held until `settle`."""
        del self._coming[key]
        self._there.add(key)
        self.use([key])
        self._note(key)
        if self.on_move is not None:
            self.on_move(key, self.offset(key))

    @property
    def is_in_use(self) -> bool:
        """Whether any page is."""
        return bool(self._in_use)

    def let_go(self) -> None:
        """Nobody uses a page any more; those on their way have not come, and their slots are free.

        After an error or an interruption, wherever it struck.
        """
        for key in self._coming:
            self._free(key)
        self._coming.clear()
        self._in_use.clear()
        for key in self._places:
            self._note(key)
            self._queue(self._class_of(key), key)

    def settle(self, key: ExpertKey) -> None:
        """The page that arrived has been used. It stays, and is the first to go if it is the coldest."""
        self.release([key])
        self._queue(self._class_of(key), key)

    def settle_in_layer(self, key: ExpertKey, most_pages: int) -> bool:
        """As `settle`, for a prompt, which comes by every layer: no other layer loses a page to this one.

        It stays where a slot is left over and the layer's bank has fewer than `most_pages`, or in place of
        a colder page of its own layer and size.
        """
        self.release([key])
        size_class = self._class_of(key)
        mates = self._mates(key)
        # Without `_reclaim`: what another class has borrowed may be needed in this prompt again.
        has_room = self.slots.num_available(size_class) >= self._spare_slots
        if not has_room or len(mates) > most_pages:
            idle = (mate for mate in mates if mate not in self._in_use and self._class_of(mate) == size_class)
            victim = min(idle, key=self.heat.level)
            self.evict(victim)
            if victim == key:
                return False
        self._queue(size_class, key)
        return True

    def evict(self, key: ExpertKey) -> None:
        """Forget a page that nobody uses."""
        assert key not in self._in_use, key
        assert key not in self._coming, key
        del self._mates(key)[key]
        self._there.remove(key)
        self._num_vision_pages -= key.bank == "vision"
        self._free(key)
        if self.on_move is not None:
            self.on_move(key, None)

    def shrink(self) -> int | None:
        """Give up the frame whose hottest page is the coldest; its number, None if every frame is in use."""
        if not self.slots.num_free_frames:
            best: tuple[float, list[ExpertKey]] | None = None
            for size_class in range(len(self.slots.classes)):
                for keys in self._idle_frames(size_class):
                    # Vision pages serve images that may never come.
                    hottest = max(
                        self.heat.level(key) if key.bank == "text" else float("-inf") for key in keys
                    )
                    if best is None or hottest < best[0]:
                        best = (hottest, keys)
            if best is None:
                return None
            for key in best[1]:
                self.evict(key)
        return self.slots.retire()

    def keep_first(self, num_frames: int) -> None:
        """Give up all frames but the first so many, whatever lies there. No page is in use or on its way.

        Not for a cache of which `shrink` has taken frames.
        """
        for key, slot in list(self._places.items()):
            if slot.frame >= num_frames:
                self.evict(key)
        for frame in reversed(range(num_frames, self.slots.num_frames)):
            self.slots.retire(frame)

    def _note(self, key: ExpertKey) -> None:
        mates = self._mates(key)
        self._num_vision_pages += key.bank == "vision" and key not in mates
        mates[key] = None

    def _mates(self, key: ExpertKey) -> dict[ExpertKey, None]:
        """Pages of its layer and kind."""
        return self._pages_of[key.layer_id, key.bank, key.is_small]

    def _free(self, key: ExpertKey) -> None:
        self.slots.give_back(self._class_of(key), self._places.pop(key))

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
        for other in range(len(self.slots.classes)):
            if self.slots.num_over(other) <= 0:
                continue
            keys = next(iter(self._idle_frames(other)), None)
            if keys is not None:
                for key in keys:
                    self.evict(key)
                return True
        return False

    def _empty_vision_frame(self, coming: ExpertKey) -> bool:
        """Empty a frame of vision pages for one of text; its owner asks for it again in the next prompt."""
        if coming.bank == "vision" or not self._num_vision_pages:
            return False
        for size_class in range(len(self.slots.classes)):
            for keys in self._idle_frames(size_class):
                if keys[0].bank == "vision":
                    for key in keys:
                        self.evict(key)
                    return True
        return False

    def _idle_frames(self, size_class: int) -> Iterable[list[ExpertKey]]:
        """The pages of each frame of which none is in use or on its way."""
        by_frame: dict[int, list[ExpertKey]] = {}
        for key, slot in self._places.items():
            if self._class_of(key) == size_class:
                by_frame.setdefault(slot.frame, []).append(key)
        for keys in by_frame.values():
            if not any(key in self._in_use or key in self._coming for key in keys):
                yield keys

    def _coldest_page(self, size_class: int, coming: ExpertKey, is_urgent: bool) -> ExpertKey | None:
        """The coldest page of the class that may go when `coming` comes."""
        heap = self._coldest[size_class]
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
            elif key not in self._in_use and self._may_go(key, coming):
                found = key
            else:
                kept.append(key)
                if protected is None and key not in self._in_use:
                    protected = key
        for key in kept:
            self._queue(size_class, key)
        return protected if found is None and is_urgent else found

    def _queue(self, size_class: int, key: ExpertKey) -> None:
        if key not in self._queued:
            self._queued.add(key)
            heapq.heappush(self._coldest[size_class], (self.heat.level(key), key))

    def _may_go(self, key: ExpertKey, coming: ExpertKey) -> bool:
        if key.layer_id == coming.layer_id or key.bank != "text" or key.is_small:
            return True
        return len(self._mates(key)) > self._layer_floor
