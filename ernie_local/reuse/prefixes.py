"""Names the beginnings of conversations: a chain of segments, each called after all that comes before.

A segment is a chunk, which was computed at once as every prompt with this beginning would compute it, or a
tail, which a chat computed in its own steps. A name holds its parent's, so one look at the names of a folder
finds the longest beginning, and two questions about one image share the segment of the image.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ernie_local.reuse.identity import digest_of

# Between two images of a group stand their tags and "Picture 10:", which are no text of a question.
_MOST_LABEL_TOKENS = 10
_NAME = re.compile(r"prefix-([0-9a-f]+)-([ct])([0-9]+)-([0-9a-f]+)")

SegmentKind = Literal["c", "t"]  # chunk, tail


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image in a conversation: its placeholders are the tokens from `start` to before `stop`."""

    start: int
    stop: int
    key: str


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens from `start` to before `stop` of a conversation; name: of their entry in a cache folder."""

    start: int
    stop: int
    name: str

    @property
    def num_tokens(self) -> int:
        """Tokens of this segment alone."""
        return self.stop - self.start


def image_groups_end(images: Sequence[PlacedImage], num_tokens: int) -> list[int]:
    """Where images with nothing but labels between them end, their end tag included, if more tokens follow.

    A question stands behind its images, so another question about them begins with the same tokens.
    """
    after = [*(image.start for image in images[1:]), num_tokens + _MOST_LABEL_TOKENS]
    ends = [
        image.stop + 1
        for image, following in zip(images, after, strict=False)
        if following - image.stop >= _MOST_LABEL_TOKENS
    ]
    return [end for end in ends if end < num_tokens]


class PrefixNames:
    """The names of all segments of one conversation: its tokens so far, and its images."""

    def __init__(self, root: str, token_ids: Sequence[int], images: Sequence[PlacedImage]) -> None:
        """root: a hash of everything else that keys and values depend on."""
        self._root = root
        self._ids = array("i", token_ids)
        self._images = images

    def chain(self, ends: Iterable[tuple[int, SegmentKind]]) -> list[Segment]:
        """The segments from the first token on that have these ends."""
        parent, start, segments = self._root, 0, []
        for stop, kind in ends:
            segment, parent = self._child(parent, start, stop, kind)
            segments.append(segment)
            start = stop
        return segments

    def find(
        self, names: Iterable[str], next_stop: Callable[[int], int]
    ) -> list[tuple[Segment, SegmentKind]]:
        """The segments among `names` that this conversation begins with, without its last token.

        next_stop: where the chunk that begins at a token would end if it were computed. The last segment does
        not end inside of an image.
        """
        children: dict[str, list[tuple[SegmentKind, int, str]]] = {}
        for name in names:
            if match := _NAME.fullmatch(name):
                kind: SegmentKind = "c" if match[2] == "c" else "t"
                children.setdefault(match[1], []).append((kind, int(match[3]), match[4]))
        found: list[tuple[Segment, SegmentKind]] = []
        parent, start = self._root, 0
        while parent in children:
            chunk_tokens = next_stop(start) - start
            for kind, num_tokens, own in sorted(children[parent], key=lambda child: -child[1]):
                stop = start + num_tokens
                is_chunk = kind == "c"
                if not start < stop < len(self._ids) or (is_chunk and num_tokens != chunk_tokens):
                    continue
                segment, digest = self._child(parent, start, stop, kind)
                if digest == own:
                    found.append((segment, kind))
                    parent, start = digest, stop
                    break
            else:
                break
        while found and self._cuts_an_image(found[-1][0].stop):
            found.pop()
        return found

    def _cuts_an_image(self, length: int) -> bool:
        return any(image.start < length < image.stop for image in self._images)

    def _child(self, parent: str, start: int, stop: int, kind: SegmentKind) -> tuple[Segment, str]:
        images = [(image.start - start, image.key) for image in self._images if start <= image.start < stop]
        digest = digest_of(parent, kind, self._ids[start:stop].tobytes(), images)
        return Segment(start, stop, f"prefix-{parent}-{kind}{stop - start}-{digest}"), digest
