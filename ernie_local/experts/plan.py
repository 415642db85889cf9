"""Divides a memory among pages: sizes of slots and frames, each bank's share, and a GPU's workspace.

Pure Python, without torch: the runtime pages by a plan, a replay and the planner compute with the same one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations
from typing import NamedTuple

from ernie_local.config import MODALITIES, Bank
from ernie_local.experts.cache import PageCache
from ernie_local.experts.heat import FIRST_DECAY, AdaptiveHeat, Heat
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.slots import SizeClass, SlotMap
from ernie_local.sizes import MIB

# The bank of a page, or _SMALL. Small pages come for a token and go, and have slots for no more than that: a
# byte of memory saves more reading if it holds part of a page that serves every use of its expert.
_Kind = str
_SMALL = "small"

# Pages prefetched in a prompt: what the disk reads while a layer's attention is computed.
MOST_PREFETCHED = 16


class _PageClass(NamedTuple):
    """The pages of one kind whose slots have one size."""

    kind: _Kind
    slot_bytes: int
    num_pages: int


def _kind(key: ExpertKey) -> _Kind:
    return _SMALL if key.is_small else key.bank


class PagingPlan:
    """How pages of these sizes share a memory."""

    def __init__(self, page_bytes: Mapping[ExpertKey, int], top_k: int) -> None:
        """page_bytes: of every page of the model; top_k: experts of a token."""
        self.page_bytes = page_bytes
        self.top_k = top_k
        self._layer_ids = sorted({key.layer_id for key in page_bytes})
        self._classes: list[_PageClass] = []
        self._class_of: dict[ExpertKey, int] = {}
        for kind in (*MODALITIES, _SMALL):
            own = {
                key: -(-size // UNIT_BYTES) * UNIT_BYTES
                for key, size in page_bytes.items()
                if _kind(key) == kind
            }
            sizes = class_sizes(list(own.values()))
            first = len(self._classes)
            class_of = {key: first + bisect_left(sizes, size) for key, size in own.items()}
            counts = Counter(class_of.values())
            self._class_of |= class_of
            self._classes += [
                _PageClass(kind, size, counts[first + index]) for index, size in enumerate(sizes)
            ]
        text_slots = [one.slot_bytes for one in self._of_kind("text") for _ in range(one.num_pages)]
        self.frame_bytes = max(frame_bytes(text_slots), *(one.slot_bytes for one in self._classes))

    @property
    def least_frames(self) -> int:
        """The least number with which the experts of any token have slots."""
        return sum(self._frames_for(one, self.top_k) for one in self._classes)

    @property
    def least_bytes(self) -> int:
        """Of `least_frames` and one more: memory that is shared with others is cut into whole frames."""
        return self.frame_bytes * (self.least_frames + 1)

    @property
    def most_bytes(self) -> int:
        """The memory that holds every page."""
        text_frames = sum(self._frames_for(one, self.top_k) for one in self._of_kind("text"))
        return sum(map(self.bytes_of, MODALITIES)) + self.frame_bytes * text_frames

    def bytes_of(self, kind: _Kind) -> int:
        """Of the frames that hold all pages of a kind."""
        return self.frame_bytes * sum(self._frames_for(one, one.num_pages) for one in self._of_kind(kind))

    def build_cache(
        self, memory_bytes: int, decay: float | None = None, *, is_shared: bool = False
    ) -> PageCache:
        """A cache that takes at most `memory_bytes`, which are at least `least_bytes`.

        decay: see Heat; None lets the tokens decide. is_shared: whether others may have any part of the
        memory for a while, so that all of it is cut into frames.
        """
        num_frames = (memory_bytes if is_shared else min(memory_bytes, self.most_bytes)) // self.frame_bytes
        classes = self._share_frames(num_frames)
        slots = SlotMap(self.frame_bytes, num_frames, classes)
        text = [index for index, one in enumerate(self._classes) if one.kind == "text"]
        text_frames = sum(classes[index].frames for index in text)
        text_slots = sum(classes[index].frames * slots.per_frame[index] for index in text)
        layer_floor = min(self.top_k, max(0, text_slots - self.top_k) // len(self._layer_ids))
        heat: Heat | AdaptiveHeat
        if decay is None:
            # In decode the frames of vision hold pages of text too.
            decode_slots = text_slots * num_frames // max(1, text_frames)
            # With a slot for every page, all decays have the same hits.
            has_all = decode_slots >= self._num_pages("text")
            heat = Heat(FIRST_DECAY) if has_all else AdaptiveHeat(self._layer_ids, decode_slots)
        else:
            heat = Heat(decay)
        return PageCache(slots, self._class_of.__getitem__, heat, self.top_k, layer_floor)

    def prefetch_window(self, cache: PageCache) -> int:
        """Most pages in flight in a prompt; fewer where the cache has few slots."""
        num_slots = cache.slots.num_frames * min(cache.slots.per_frame)
        return max(min(MOST_PREFETCHED, num_slots // 4), self.top_k)

    def prompt_shares(self, cache: PageCache) -> dict[Bank, int]:
        """Most pages that a layer of each bank keeps from a prompt: text evenly, vision of what is left.

        A prompt asks for every page once, so it does not matter which ones stay for the next chunk. Only text
        pages are asked for afterwards.
        """
        left = cache.slots.num_frames * self.frame_bytes
        shares: dict[Bank, int] = {}
        text_bytes, vision_bytes = self.bytes_of("text"), self.bytes_of("vision")
        kept = -(-min(left, text_bytes) * self._num_pages("text") // text_bytes)
        shares["text"] = -(-kept // len(self._layer_ids))
        if vision_bytes:
            left = max(0, left - text_bytes)
            kept = min(left, vision_bytes) * self._num_pages("vision") // vision_bytes
            shares["vision"] = -(-kept // len(self._layer_ids))
        return shares

    def _of_kind(self, kind: _Kind) -> list[_PageClass]:
        return [one for one in self._classes if one.kind == kind]

    def _num_pages(self, kind: _Kind) -> int:
        return sum(one.num_pages for one in self._of_kind(kind))

    def _frames_for(self, one: _PageClass, num_pages: int) -> int:
        return -(-num_pages // (self.frame_bytes // one.slot_bytes))

    def _share_frames(self, num_frames: int) -> list[SizeClass]:
        """Vision gets what prefetching needs; text pages share the rest by the bytes of each size."""
        least = [self._frames_for(one, self.top_k) for one in self._classes]
        own = list(least)
        left = num_frames - sum(own)
        assert left >= 0, (num_frames, own)
        for index, one in enumerate(self._classes):
            if one.kind == "vision":
                wanted = self._frames_for(one, MOST_PREFETCHED) - own[index]
                more = max(0, min(wanted, left // 8))
                own[index] += more
                left -= more
        text_bytes = sum(one.slot_bytes * one.num_pages for one in self._of_kind("text"))
        shared = left
        for index, one in enumerate(self._classes):
            if one.kind == "text":
                more = shared * one.slot_bytes * one.num_pages // text_bytes
                own[index] += more
                left -= more
        own[0] += left  # of the smallest text pages
        sizes = [one.slot_bytes for one in self._classes]
        return [SizeClass(*each) for each in zip(sizes, own, least, strict=True)]


_MOST_CLASSES = 4
_MOST_PAGES_A_FRAME = 4  # of the largest; more would waste less, and be harder to empty


def class_sizes(page_bytes: Sequence[int]) -> list[int]:
    """At most four sizes, ascending; a page goes into the first that holds it. Least waste over all pages.

    page_bytes: of every page. Of equals, those are chosen whose largest classes begin lowest.
    """
    counts = Counter(page_bytes)
    sizes = sorted(counts)

    def rank(chosen: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        waste = sum(count * (chosen[bisect_left(chosen, size)] - size) for size, count in counts.items())
        return waste, chosen[::-1]

    if not sizes:
        return []
    # A class more always wastes less.
    others = combinations(sizes[:-1], min(len(sizes), _MOST_CLASSES) - 1)
    best: tuple[int, ...] = min(((*chosen, sizes[-1]) for chosen in others), key=rank)
    return list(best)


def frame_bytes(page_bytes: Sequence[int]) -> int:
    """Bytes of a frame, one to four of the largest page, in which these pages waste least.

    page_bytes: of every page, each as large as its class.
    """
    counts = Counter(page_bytes)

    def taken(candidate: int) -> float:
        return sum(count * candidate / (candidate // size) for size, count in counts.items())

    return min((max(counts) * pages for pages in range(1, _MOST_PAGES_A_FRAME + 1)), key=taken)


_GRANULE = 2 * MIB  # torch's allocator rounds large blocks to it
_PIECES = 8  # a short prompt takes one of them, and pages keep the others


def workspace_pieces(num_bytes: int) -> list[int]:
    """Bytes of the pieces of a workspace of at least `num_bytes`, which is rounded up to what torch gives."""
    granules = -(-num_bytes // _GRANULE)
    each, more = divmod(granules, _PIECES)
    return [size * _GRANULE for size in [each + 1] * more + [each] * (_PIECES - more) if size]


def lent_bytes(workspace_bytes: int, needed_bytes: int) -> int:
    """What torch has of a workspace while `needed_bytes` of it are needed: whole pieces."""
    pieces = workspace_pieces(workspace_bytes)
    return next(total for total in accumulate(pieces, initial=0) if total >= min(needed_bytes, sum(pieces)))
