"""Divides a memory among pages: sizes of slots and frames, and each bank's share.

Pure Python, without torch: the runtime pages by a plan, a replay and the planner compute with the same one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ernie_local.config import MODALITIES, Bank
from ernie_local.experts.cache import OnMove, PageCache
from ernie_local.experts.heat import FIRST_DECAY, AdaptiveHeat, Heat
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.slots import SizeClass, SlotMap

# The bank of a page, or _SMALL. Small pages come for a token and go, and have slots for no more than that: a
# byte of memory saves more reading if it holds part of a page that serves every use of its expert.
_Kind = str
_SMALL = "small"

# Pages prefetched in a prompt: what the disk reads while a layer's attention is computed.
MOST_PREFETCHED = 16


@dataclass(frozen=True, slots=True)
class _SizeClasses:
    """Sizes of slots of one kind of page, and the number of its pages of each size."""

    sizes: list[int]
    pages: list[int]

    @staticmethod
    def of(page_bytes: Sequence[int]) -> _SizeClasses:
        sizes = class_sizes(page_bytes)
        counts = Counter(bisect_left(sizes, size) for size in page_bytes)
        return _SizeClasses(sizes, [counts[index] for index in range(len(sizes))])


def _kind(key: ExpertKey) -> _Kind:
    return _SMALL if key.is_small else key.bank


class PagingPlan:
    """How pages of these sizes share a memory."""

    def __init__(self, page_bytes: Mapping[ExpertKey, int], top_k: int) -> None:
        """page_bytes: of every page of the model; top_k: experts of a token."""
        self.top_k = top_k
        self._aligned = {key: -(-size // UNIT_BYTES) * UNIT_BYTES for key, size in page_bytes.items()}
        by_kind: dict[_Kind, list[int]] = {kind: [] for kind in (*MODALITIES, _SMALL)}
        for key, size in self._aligned.items():
            by_kind[_kind(key)].append(size)
        self._kinds = {kind: _SizeClasses.of(sizes) for kind, sizes in by_kind.items() if sizes}
        self._layer_ids = sorted({key.layer_id for key in page_bytes})
        self._num_layers = len(self._layer_ids)
        text = self._kinds["text"]
        self.frame_bytes = frame_bytes(
            [size for size, count in zip(text.sizes, text.pages, strict=True) for _ in range(count)]
        )
        largest = max(size for kind in self._kinds.values() for size in kind.sizes)
        self.frame_bytes = max(self.frame_bytes, largest)
        self._class_of = self._number_classes()

    @property
    def least_frames(self) -> int:
        """The least number with which the experts of any token have slots."""
        return sum(self._least_frames(kind) for kind in self._kinds)

    @property
    def least_bytes(self) -> int:
        """Of `least_frames` and one more: memory that is shared with others is cut into whole frames."""
        return self.frame_bytes * (self.least_frames + 1)

    @property
    def most_bytes(self) -> int:
        """The memory that holds every page."""
        pages = sum(self.bytes_of(kind) for kind in self._kinds if kind != _SMALL)
        return pages + self.frame_bytes * self._least_frames("text")

    def build_cache(
        self, memory_bytes: int, decay: float | None = None, on_move: OnMove | None = None
    ) -> PageCache:
        """A cache that takes at most `memory_bytes`, which are at least `least_bytes`.

        decay: see Heat; None lets the tokens decide. on_move: see cache.py.
        """
        num_frames = min(memory_bytes, self.most_bytes) // self.frame_bytes
        classes = self._share_frames(num_frames)
        slots = SlotMap(self.frame_bytes, num_frames, classes)
        text_slots = sum(
            size.frames * per_frame
            for (bank, _, _), size, per_frame in zip(
                self._all_classes(), classes, slots.per_frame, strict=True
            )
            if bank == "text"
        )
        layer_floor = min(self.top_k, max(0, text_slots - self.top_k) // self._num_layers)
        heat: Heat | AdaptiveHeat
        if decay is None:
            # In decode the frames of vision hold pages of text too.
            text_bytes = sum(
                size.frames * self.frame_bytes
                for (bank, _, _), size in zip(self._all_classes(), classes, strict=True)
                if bank == "text"
            )
            decode_slots = text_slots * num_frames * self.frame_bytes // max(1, text_bytes)
            # With a slot for every page, all decays have the same hits.
            has_all = decode_slots >= sum(self._kinds["text"].pages)
            heat = Heat(FIRST_DECAY) if has_all else AdaptiveHeat(self._layer_ids, decode_slots)
        else:
            heat = Heat(decay)
        return PageCache(slots, self._class_of.__getitem__, heat, self.top_k, layer_floor, on_move)

    def prefetch_window(self, cache: PageCache) -> int:
        """Most pages in flight in a prompt; fewer where the cache has few slots."""
        num_slots = cache.slots.num_frames * min(cache.slots.per_frame)
        return max(min(MOST_PREFETCHED, num_slots // 4), self.top_k)

    def prompt_shares(self, cache: PageCache) -> dict[Bank, int]:
        """Most pages that a layer of each bank keeps from a prompt: text evenly, vision of what is left.

        A prompt asks for every page once, so it does not matter which ones stay for the next chunk. Only text
        pages are asked for afterwards.
        """
        room = cache.slots.num_frames * self.frame_bytes
        text_bytes, text_pages = self.bytes_of("text"), sum(self._kinds["text"].pages)
        shares: dict[Bank, int] = {"text": -(-min(room, text_bytes) * text_pages // text_bytes)}
        if "vision" in self._kinds:
            vision_bytes, vision_pages = self.bytes_of("vision"), sum(self._kinds["vision"].pages)
            left = max(0, room - text_bytes)
            shares["vision"] = min(left, vision_bytes) * vision_pages // vision_bytes
        return {bank: -(-pages // self._num_layers) for bank, pages in shares.items()}

    def _all_classes(self) -> list[tuple[_Kind, int, int]]:
        """Kind, size of a slot and number of pages of every class."""
        return [
            (kind, size, count)
            for kind, classes in self._kinds.items()
            for size, count in zip(classes.sizes, classes.pages, strict=True)
        ]

    def _number_classes(self) -> dict[ExpertKey, int]:
        first: dict[_Kind, int] = {}
        for index, (kind, _, _) in enumerate(self._all_classes()):
            first.setdefault(kind, index)
        return {
            key: first[_kind(key)] + bisect_left(self._kinds[_kind(key)].sizes, size)
            for key, size in self._aligned.items()
        }

    def _frames_for(self, size: int, count: int) -> int:
        return -(-count // (self.frame_bytes // size))

    def bytes_of(self, kind: _Kind) -> int:
        """Of the frames that hold all pages of a kind."""
        classes = self._kinds[kind]
        each = zip(classes.sizes, classes.pages, strict=True)
        return self.frame_bytes * sum(self._frames_for(size, count) for size, count in each)

    def _least_frames(self, kind: _Kind) -> int:
        """Frames for the experts of any token."""
        return sum(self._frames_for(size, self.top_k) for size in self._kinds[kind].sizes)

    def _share_frames(self, num_frames: int) -> list[SizeClass]:
        """Vision gets what prefetching needs; text pages share the rest by the bytes of each size."""
        classes = self._all_classes()
        least = [self._frames_for(size, self.top_k) for _, size, _ in classes]
        own = list(least)
        left = num_frames - sum(own)
        assert left >= 0, (num_frames, own)
        for index, (bank, size, _) in enumerate(classes):
            if bank == "vision":
                wanted = self._frames_for(size, MOST_PREFETCHED) - own[index]
                more = max(0, min(wanted, left // 8))
                own[index] += more
                left -= more
        text_bytes = sum(size * count for bank, size, count in classes if bank == "text")
        shared = left
        for index, (bank, size, count) in enumerate(classes):
            if bank == "text":
                more = shared * size * count // text_bytes
                own[index] += more
                left -= more
        own[0] += left  # of the smallest text pages
        sizes = [size for _, size, _ in classes]
        return [SizeClass(*each) for each in zip(sizes, own, least, strict=True)]


_MOST_CLASSES = 4
_MOST_PAGES_A_FRAME = 4  # of the largest; more would waste less, and be harder to empty


def class_sizes(page_bytes: Sequence[int]) -> list[int]:
    """At most four sizes, ascending; a page goes into the first that holds it. Least waste over all pages.

    page_bytes: of every page.
    """
    counts = Counter(page_bytes)
    sizes = sorted(counts)

    def cost(first: int, last: int) -> int:
        return sum(counts[size] * (sizes[last] - size) for size in sizes[first : last + 1])

    # least[i]: the least waste of the first i sizes in as many classes as allowed yet, and these classes.
    nothing: tuple[float, tuple[int, ...]] = (0.0, ())
    least = [nothing, *[(math.inf, nothing[1])] * len(sizes)]
    for _ in range(_MOST_CLASSES):
        shorter = list(least)
        for end in range(1, len(sizes) + 1):
            for first in range(end):
                waste = shorter[first][0] + cost(first, end - 1)
                if waste < least[end][0]:
                    least[end] = (waste, (*shorter[first][1], sizes[end - 1]))
    return list(least[-1][1])


def frame_bytes(page_bytes: Sequence[int]) -> int:
    """Bytes of a frame, one to four of the largest page, in which these pages waste least.

    page_bytes: of every page, each as large as its class.
    """
    counts = Counter(page_bytes)

    def taken(candidate: int) -> float:
        return sum(count * candidate / (candidate // size) for size, count in counts.items())

    return min((max(counts) * pages for pages in range(1, _MOST_PAGES_A_FRAME + 1)), key=taken)
