"""Divides a memory into frames of one size, and each frame into slots for pages of one size class.

Pure Python over numbers. Three vision pages fit where one text page lies. Each class owns a number of frames;
free frames are lent to any class, and the cache takes them back for their owner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Slot(NamedTuple):
    """Room for one page: its frame, and its place there, counted in pages of the class."""

    frame: int
    place: int


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Pages of at most `page_bytes`. The class owns `frames` and never loses its last `least_frames`."""

    page_bytes: int
    frames: int
    least_frames: int = 0


class SlotMap:
    """Knows which slots are free and which class holds each frame."""

    def __init__(self, frame_bytes: int, num_frames: int, classes: Sequence[SizeClass]) -> None:
        """The classes own at most `num_frames` frames together."""
        assert sum(size.frames for size in classes) <= num_frames, (num_frames, classes)
        assert all(size.page_bytes <= frame_bytes for size in classes), (frame_bytes, classes)
        self.frame_bytes = frame_bytes
        self.classes = list(classes)
        self.per_frame = [frame_bytes // size.page_bytes for size in classes]
        self._most_frames = num_frames
        self._removed: list[tuple[int, int]] = []  # frame, and the class that lost it
        self.restore(())

    def restore(self, held: Iterable[tuple[int, Slot]]) -> None:
        """Begin again with these slots taken, (class, slot) each, and the frames out of use that are now."""
        lost = Counter(loser for _, loser in self._removed)
        self._owned = [size.frames - lost[index] for index, size in enumerate(self.classes)]
        # Of each class: its frames, each with the places that are free in it.
        self._frames: list[dict[int, list[int]]] = [{} for _ in self.classes]
        for size_class, slot in held:
            every = list(reversed(range(self.per_frame[size_class])))
            self._frames[size_class].setdefault(slot.frame, every).remove(slot.place)
        # Frames with a free place, in order.
        self._open = [{frame: None for frame, places in frames.items() if places} for frames in self._frames]
        taken = {frame for frames in self._frames for frame in frames} | {frame for frame, _ in self._removed}
        self._free_frames = [frame for frame in reversed(range(self._most_frames)) if frame not in taken]

    @property
    def removed_frames(self) -> list[int]:
        """Frames that are out of use."""
        return [frame for frame, _ in self._removed]

    @property
    def num_free_frames(self) -> int:
        """Frames that no class holds."""
        return len(self._free_frames)

    @property
    def num_frames(self) -> int:
        """Frames in use or free, without the removed ones."""
        return len(self._free_frames) + sum(len(frames) for frames in self._frames)

    def offset(self, size_class: int, slot: Slot) -> int:
        """First byte of the slot."""
        return slot.frame * self.frame_bytes + slot.place * self.classes[size_class].page_bytes

    def num_over(self, size_class: int) -> int:
        """Frames that the class holds beyond its own; below 0 if other classes hold some of its own."""
        return len(self._frames[size_class]) - self._owned[size_class]

    def num_available(self, size_class: int) -> int:
        """Slots that `allocate` would give one after the other."""
        places = sum(len(self._frames[size_class][frame]) for frame in self._open[size_class])
        return places + len(self._free_frames) * self.per_frame[size_class]

    def allocate(self, size_class: int) -> Slot | None:
        """A free slot, in a frame of the class or in a free frame; None if there is none."""
        frame = next(iter(self._open[size_class]), None)
        if frame is None:
            if not self._free_frames:
                return None
            frame = self._free_frames.pop()
            self._frames[size_class][frame] = list(reversed(range(self.per_frame[size_class])))
            self._open[size_class][frame] = None
        places = self._frames[size_class][frame]
        place = places.pop()
        if not places:
            del self._open[size_class][frame]
        return Slot(frame, place)

    def free(self, size_class: int, slot: Slot) -> None:
        """Free the slot; a frame without pages belongs to no class."""
        places = self._frames[size_class][slot.frame]
        assert slot.place not in places, slot
        places.append(slot.place)
        if len(places) == self.per_frame[size_class]:
            del self._frames[size_class][slot.frame]
            self._open[size_class].pop(slot.frame, None)
            self._free_frames.append(slot.frame)
        else:
            self._open[size_class][slot.frame] = None

    def remove_frame(self, frame: int | None = None) -> int | None:
        """Take a free frame out of use, this one if it is named; None if no frame is free."""
        if not self._free_frames:
            return None
        if frame is None:
            frame = self._free_frames.pop()
        else:
            self._free_frames.remove(frame)
        spare = [owned - size.least_frames for owned, size in zip(self._owned, self.classes, strict=True)]
        loser = spare.index(max(spare))
        self._owned[loser] -= 1
        self._removed.append((frame, loser))
        return frame

    def add_frame(self, frame: int | None = None) -> int | None:
        """Put this frame back into use, or the one that was removed last; None if there is none."""
        if not self._removed:
            return None
        index = -1 if frame is None else [removed for removed, _ in self._removed].index(frame)
        frame, owner = self._removed.pop(index)
        self._owned[owner] += 1
        self._free_frames.append(frame)
        return frame
