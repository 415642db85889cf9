"""The cache of pages and its slots under every sequence of calls that a scheduler may make."""

from __future__ import annotations

from collections import OrderedDict
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ernie_local.experts.cache import PageCache
from ernie_local.experts.heat import Heat
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.slots import SizeClass, Slot, SlotMap

FLOOR = 2
TOP_K = 2
# Two sizes of text pages and one of vision; three small ones in a frame.
PAGE_BYTES = (6, 4, 2)
FRAME_BYTES = 6
KEYS = [
    ExpertKey(layer_id, bank, expert_id)
    for layer_id in (1, 2, 3)
    for bank in ("text", "vision")
    for expert_id in range(6)
]


def class_of(key: ExpertKey) -> int:
    return 2 if key.bank == "vision" else int(key.expert_id % 3 == 0)


def make_slots(num_frames: int) -> SlotMap:
    """Each class needs a frame at least, the first has what the others leave."""
    own = (num_frames - 4, 2, 2)
    return SlotMap(
        FRAME_BYTES, num_frames, [SizeClass(*each, 1) for each in zip(PAGE_BYTES, own, strict=True)]
    )


def bytes_of(slots: SlotMap, size_class: int, slot: Slot) -> set[int]:
    first = slots.offset(size_class, slot)
    return set(range(first, first + PAGE_BYTES[size_class]))


class SlotMachine(RuleBasedStateMachine):
    """Slots taken and given back: none is given twice, every frame comes home."""

    @initialize(num_frames=st.integers(6, 12))
    def start(self, num_frames: int) -> None:
        self.num_frames, self.retired = num_frames, 0
        self.slots = make_slots(num_frames)
        self.taken: list[tuple[int, Slot]] = []

    @rule(size_class=st.integers(0, 2))
    def take(self, size_class: int) -> None:
        available = self.slots.num_available(size_class)
        slot = self.slots.allocate(size_class)
        assert (slot is not None) == (available > 0)
        if slot is not None:
            assert self.slots.num_available(size_class) == available - 1
            self.taken.append((size_class, slot))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.slots.free(*self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @rule()
    def retire(self) -> None:
        free = self.slots.num_free_frames
        frame = self.slots.remove_frame()
        assert (frame is not None) == (free > 0)
        self.retired += frame is not None

    @rule()
    def restore(self) -> None:
        frame = self.slots.add_frame()
        assert (frame is not None) == (self.retired > 0)
        self.retired -= frame is not None

    @invariant()
    def no_byte_belongs_to_two(self) -> None:
        places = [bytes_of(self.slots, *one) for one in self.taken]
        together = set().union(*places)
        assert sum(map(len, places)) == len(together)
        assert together <= set(range(self.num_frames * FRAME_BYTES))

    @invariant()
    def frames_are_all_there(self) -> None:
        assert self.slots.num_frames == self.num_frames - self.retired
        used = {slot.frame for _, slot in self.taken}
        assert self.slots.num_free_frames == self.slots.num_frames - len(used)
        held = [len({slot.frame for which, slot in self.taken if which == number}) for number in range(3)]
        own = [frames - self.slots.num_over(number) for number, frames in enumerate(held)]
        assert sum(own) == self.slots.num_frames  # every frame is somebody's own, the retired ones nobody's
        assert min(own) >= 1 or self.slots.num_frames < 3


class CacheMachine(RuleBasedStateMachine):
    """Pages expected, used, settled, given up: what is in use or on its way stays where it is."""

    @initialize(num_frames=st.integers(6, 8), decay=st.sampled_from([0.0, 0.9, 1.0]))
    def start(self, num_frames: int, decay: float) -> None:
        self.num_frames = num_frames
        self.slots = make_slots(num_frames)
        self.cache = PageCache(self.slots, class_of, Heat(decay), TOP_K, FLOOR)
        self.coming: list[ExpertKey] = []
        self.arrived: list[ExpertKey] = []
        self.used: list[ExpertKey] = []
        self.places: dict[ExpertKey, int] = {}  # of what must not move
        self.counts: dict[int, int] = {}

    def text_pages(self) -> dict[int, int]:
        keys = [key for key in KEYS if key in self.cache and key.bank == "text"]
        return {layer_id: sum(key.layer_id == layer_id for key in keys) for layer_id in (1, 2, 3)}

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=TOP_K, unique=True))
    def touch(self, keys: list[ExpertKey]) -> None:
        self.cache.advance()
        self.cache.heat.touch(keys)

    @rule(key=st.sampled_from(KEYS), is_urgent=st.booleans())
    def expect(self, key: ExpertKey, is_urgent: bool) -> None:
        if key in self.cache or key in self.coming:
            return
        before, present = self.text_pages(), self.cache.keys()
        has_slot = self.cache.reserve(key, is_urgent=is_urgent)
        after = self.text_pages()
        if has_slot:
            self.coming.append(key)
            self.places[key] = self.cache.offset(key)
            gone = {one for one in present if one not in self.cache}
            # What a page of the same size drives out respects the floor of other layers.
            for one in gone if not is_urgent and len(gone) == 1 else ():
                same_size = class_of(one) == class_of(key)
                if same_size and one.bank == "text" and one.layer_id != key.layer_id:
                    assert before[one.layer_id] > FLOOR
                    assert after[one.layer_id] >= FLOOR
        elif is_urgent:
            mates = [one for one in present if class_of(one) == class_of(key)]
            assert all(one in self.used or one in self.arrived for one in mates)

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=4, max_size=12, unique=True))
    def fetch(self, keys: list[ExpertKey]) -> None:
        """Fills the memory."""
        for key in keys:
            if key not in self.cache and key not in self.coming and self.cache.reserve(key):
                self.cache.commit(key)
                self.cache.admit(key)

    @precondition(lambda self: self.coming)
    @rule()
    def arrive(self) -> None:
        key = self.coming.pop(0)
        assert key not in self.cache
        self.cache.commit(key)
        self.arrived.append(key)

    @precondition(lambda self: self.arrived)
    @rule(most_pages=st.none() | st.integers(0, 4))
    def settle(self, most_pages: int | None) -> None:
        key = self.arrived.pop(0)
        before, num_before = self.text_pages(), len(self.cache.keys())
        if most_pages is None or key in self.used:  # a prompt uses no page that is still to be settled
            self.cache.admit(key)
            assert key in self.cache
        else:
            stays = self.cache.admit_from_prompt(key, most_pages)
            assert stays == (key in self.cache)
            mates = [one for one in KEYS if one in self.cache and one[:2] == key[:2]]
            if len(self.cache.keys()) == num_before:  # nothing went, so there was room for one more
                assert len(mates) <= most_pages
                assert self.slots.num_available(class_of(key)) >= TOP_K
            others = [layer_id for layer_id in before if layer_id != key.layer_id]
            assert all(self.text_pages()[layer_id] == before[layer_id] for layer_id in others)
        if key not in self.used:
            del self.places[key]

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        present = self.cache.keys()
        if present:
            key = data.draw(st.sampled_from(present))
            self.cache.pin([key])
            self.used.append(key)
            self.places[key] = self.cache.offset(key)

    @precondition(lambda self: self.used)
    @rule()
    def release(self) -> None:
        key = self.used.pop()
        self.cache.unpin([key])
        if key not in self.used and key not in self.arrived:
            del self.places[key]

    @rule()
    def give_up(self) -> None:
        self.cache.abort()
        for key in self.coming:
            assert key not in self.cache
        self.coming, self.arrived, self.used, self.places = [], [], [], {}

    @rule()
    def shrink(self) -> None:
        if self.slots.num_frames > 6:
            idle = self.slots.num_free_frames
            frame = self.cache.remove_coldest_frame()
            assert frame is not None or not idle

    @rule()
    def grow(self) -> None:
        self.slots.add_frame()

    @invariant()
    def what_is_held_stays_where_it_is(self) -> None:
        for key, offset in self.places.items():
            assert self.cache.offset(key) == offset
            assert (key in self.cache) == (key not in self.coming)

    @invariant()
    def no_byte_belongs_to_two(self) -> None:
        keys = [*self.cache.keys(), *self.coming]
        places = [
            range(self.cache.offset(key), self.cache.offset(key) + PAGE_BYTES[class_of(key)]) for key in keys
        ]
        assert sum(map(len, places)) == len(set().union(*places))
        assert len(self.cache.keys()) == len(keys) - len(self.coming)


TestSlots = SlotMachine.TestCase
TestCache = CacheMachine.TestCase
TestSlots.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
TestCache.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)


def pages_of_one_size(num_frames: int, decay: float, layer_floor: int = 0) -> PageCache:
    slots = SlotMap(6, num_frames, [SizeClass(6, num_frames)])
    return PageCache(slots, lambda key: 0, Heat(decay), TOP_K, layer_floor)


def visit(cache: PageCache, key: ExpertKey) -> bool:
    """As decode does; whether the page was there."""
    cache.advance()
    cache.heat.touch([key])
    if key in cache:
        return True
    assert cache.reserve(key, is_urgent=True)
    cache.commit(key)
    cache.admit(key)
    return False


def test_decay_0_keeps_what_an_ordered_dict_keeps() -> None:
    cache, lru, random = pages_of_one_size(5, 0.0), OrderedDict[ExpertKey, None](), Random(1)
    text = [key for key in KEYS if key.bank == "text"]
    for _ in range(500):
        key = random.choice(text)
        was_there = key in lru
        lru[key] = None
        lru.move_to_end(key)
        if len(lru) > 5:
            lru.popitem(last=False)
        assert visit(cache, key) == was_there
        assert set(cache.keys()) == set(lru)


def test_decay_1_keeps_what_was_used_most_and_the_last_page() -> None:
    cache = pages_of_one_size(4, 1.0)
    text = [key for key in KEYS if key.bank == "text"]
    for number, key in enumerate(text[:3]):
        for _ in range(10 + number):
            visit(cache, key)
    for key in text[3:]:
        assert not visit(cache, key)
        assert set(cache.keys()) == {*text[:3], key}  # what is seldom used passes through one slot


def test_layers_keep_their_floor_until_a_token_needs_the_slot() -> None:
    cache = pages_of_one_size(4, 0.0, layer_floor=2)
    first, second, third = ([key for key in KEYS if key[:2] == (layer, "text")] for layer in (1, 2, 3))
    for key in (*first[:2], *second[:2]):
        visit(cache, key)
    assert not cache.reserve(third[0])
    assert cache.reserve(third[0], is_urgent=True)
    assert first[0] not in cache  # the coldest of those that the floors protect


def test_text_takes_the_frames_of_vision_in_decode_and_vision_asks_for_them_again() -> None:
    slots = SlotMap(6, 4, [SizeClass(6, 2), SizeClass(2, 2)])
    cache = PageCache(slots, lambda key: int(key.bank == "vision"), Heat(0.9), TOP_K, 0)
    text = [key for key in KEYS if key.bank == "text"]
    vision = [key for key in KEYS if key.bank == "vision"]

    def bring(key: ExpertKey, is_urgent: bool) -> None:
        cache.heat.touch([key])
        assert cache.reserve(key, is_urgent=is_urgent)
        cache.commit(key)
        cache.admit(key)

    for key in (*text[:2], *vision[:6]):
        bring(key, is_urgent=False)
    assert slots.num_free_frames == 0
    bring(text[2], is_urgent=False)  # of a prompt: text drives out text
    assert all(key in cache for key in vision[:6])
    bring(text[3], is_urgent=True)
    bring(text[4], is_urgent=True)
    assert not any(key in cache for key in vision)
    assert len(cache.keys()) == 4
    bring(vision[0], is_urgent=False)
    assert vision[0] in cache
    assert slots.num_over(0) == 1


def test_shrinking_gives_up_the_coldest_frame_first_those_of_vision() -> None:
    slots = SlotMap(6, 3, [SizeClass(6, 2), SizeClass(2, 1)])
    cache = PageCache(slots, lambda key: int(key.bank == "vision"), Heat(0.9), TOP_K, 0)
    text = [key for key in KEYS if key.bank == "text"][:2]
    vision = next(key for key in KEYS if key.bank == "vision")
    for key in (*text, vision):
        visit(cache, key)
    cache.pin(text[:1])
    assert cache.remove_coldest_frame() is not None
    assert cache.keys() == text
    assert cache.remove_coldest_frame() is not None
    assert cache.keys() == text[:1]
    assert cache.remove_coldest_frame() is None  # in use
    assert slots.num_frames == 1


def test_a_prompt_keeps_a_layers_share_and_the_hottest_of_it() -> None:
    cache = pages_of_one_size(12, 1.0)
    text = [key for key in KEYS if key.bank == "text"]
    for key, share in zip(text[:4], (0.5, 0.9, 0.1, 0.7), strict=True):
        cache.heat.touch_in_prompt(key, share)
        assert cache.reserve(key)
        cache.commit(key)
        assert cache.admit_from_prompt(key, 2) == (share != 0.1)
    assert cache.keys() == [text[1], text[3]]
