"""Tracks which prompt the engine's cache holds, and computes only what another prompt adds to it.

What was computed in an earlier chat or process is taken from where `KeptResults` keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ernie_local.config import ModelConfig
from ernie_local.engine import Engine
from ernie_local.media.patches import EncodedImage, MediaInput
from ernie_local.media.tokens import model_positions
from ernie_local.model.decode_step import Mark
from ernie_local.model.limits import chunk_stops
from ernie_local.progress import OnProgress, StopQuestion
from ernie_local.reuse.prefixes import PlacedImage, PrefixNames, Segment, SegmentKind, image_groups_end
from ernie_local.reuse.results import KeptResults, bytes_of
from ernie_local.session.messages import ChatMedia
from ernie_local.text.template import TextPrompt


@dataclass(frozen=True, slots=True)
class Reuse:
    """What the last prompt did not have to compute.

    cached_tokens: of all that were there; restored_tokens: of those that came from the cache folder.
    reused_images: whose tokens were computed, but from features that were known.
    """

    cached_tokens: int = 0
    restored_tokens: int = 0
    reused_images: int = 0


class CachedSequence:
    """The engine together with the ids and images that its cache was filled with."""

    def __init__(self, engine: Engine, config: ModelConfig, results: KeptResults | None = None) -> None:
        """results: of earlier chats and processes with the model; None where nothing is kept."""
        self.engine = engine
        self.reuse = Reuse()
        self._config = config
        self._results = results
        self._token_ids: list[int] = []
        self._images: list[tuple[int, ChatMedia]] = []  # (index of the first placeholder, image)
        # Where segments end whose keys and values were computed as their names say.
        self._ends: list[tuple[int, SegmentKind]] = []

    @property
    def has_folder(self) -> bool:
        """Whether `store` writes anything."""
        return self._results is not None and self._results.folder is not None

    def kept_length(self, prompt: TextPrompt, images: Sequence[ChatMedia]) -> int:
        """How many of the prompt's ids need no computing: the cache holds them, and no image is cut.

        The last id always needs it, as its logits are what comes next.
        """
        length = min(max(len(prompt.token_ids) - 1, 0), len(self._token_ids), self.engine.length)
        pairs = zip(prompt.token_ids[:length], self._token_ids, strict=False)
        length = next((index for index, (new, old) in enumerate(pairs) if new != old), length)
        for index, (span, image) in enumerate(zip(prompt.media, images, strict=True)):
            if span.start >= length:
                break
            # Placeholders of two images look alike: only an image of the same pixels may stay.
            is_same = self._images[index : index + 1] == [(span.start, image)]
            if not is_same or span.stop > length:
                return span.start
        return length

    def images_to_encode(self, prompt: TextPrompt, images: Sequence[ChatMedia]) -> list[ChatMedia]:
        """The images that `advance_to` will most likely send through the vision tower."""
        stored = self._find_stored(prompt.token_ids, _placed(prompt, images))
        known = max(self.kept_length(prompt, images), stored[-1][0].stop if stored else 0)
        return [
            image
            for span, image in zip(prompt.media, images, strict=True)
            if span.start >= known
            and (self._results is None or not self._results.has_features(image.content_key))
        ]

    def trim(self, prompt: TextPrompt, images: Sequence[ChatMedia]) -> None:
        """Forget everything behind the part that the cache has in common with `prompt`."""
        self._rewind(self.kept_length(prompt, images))

    def advance_to(
        self,
        prompt: TextPrompt,
        images: Sequence[ChatMedia],
        should_stop: StopQuestion,
        on_progress: OnProgress | None = None,
    ) -> torch.Tensor:
        """Make the cache hold exactly `prompt`, computing only what is new; the logits (vocab,) after it.

        Interrupted where `should_stop` says so; the cache then holds the part that was there before.
        """
        self.reuse = Reuse()
        kept = self.kept_length(prompt, images)
        self._rewind(kept)
        placed = _placed(prompt, images)
        stored = self._find_stored(prompt.token_ids, placed)
        restored = 0
        if stored and stored[-1][0].stop > kept:
            restored = self._restore(stored, prompt, images)
            kept = len(self._token_ids)
        new_images = [
            (span.start, image)
            for span, image in zip(prompt.media, images, strict=True)
            if span.start >= kept
        ]
        inputs = [self._input(image) for _, image in new_images]
        reused = sum(isinstance(one, EncodedImage) for one in inputs)
        self.reuse = Reuse(kept, restored, reused)
        new_ids, cuts = prompt.token_ids[kept:], [cut - kept for cut in self._cuts(placed, prompt)]

        def keep_features(index: int, features: torch.Tensor) -> None:
            if self._results is not None:
                self._results.keep_features(new_images[index][1].content_key, features)

        logits = self.engine.prefill(
            new_ids, inputs, should_stop, on_progress, on_encoded=keep_features, cuts=cuts
        )
        if kept == self._last_end:
            # The last chunk is that of the question: it goes on with the answer.
            stops = chunk_stops(len(new_ids), self.engine.chunk_tokens, cuts)[:-1]
            self._ends += [(kept + stop, "c") for stop in stops]
        self._token_ids.extend(new_ids)
        self._images.extend(new_images)
        for image in images:
            image.release()
        return logits

    def decode(self, token_id: int) -> torch.Tensor:
        """Append one id; the logits (vocab,) after it."""
        logits = self.engine.decode(token_id)
        self._token_ids.append(token_id)
        return logits

    def append(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Append ids of plain text in one go; the logits (vocab,) after them."""
        if len(token_ids) == 1:
            return self.decode(token_ids[0])
        logits = self.engine.prefill(token_ids)
        self._token_ids.extend(token_ids)
        return logits

    def store(
        self,
        prompt: TextPrompt,
        images: Sequence[ChatMedia],
        should_stop: StopQuestion,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Write what the cache has in common with `prompt` into the cache folder, which is there.

        prompt: with which the next one will begin. The first time for a model, its files are hashed before,
        unless `should_stop` says no.
        """
        results = self._results
        assert results is not None
        assert results.folder is not None
        if not results.identify(on_progress, should_stop):
            return
        shared = self.kept_length(prompt, images)
        if shared > self._last_end:
            self._ends.append((shared, "t"))
        placed = [
            PlacedImage(start, start + image.num_tokens, image.content_key) for start, image in self._images
        ]
        segments = self._names(self._token_ids, placed).chain(self._ends)
        present = set(results.folder.names())
        for one in segments:
            if one.name not in present:
                rows = map(bytes_of, self.engine.read_rows(one.start, one.stop))
                results.folder.write(one.name, self.engine.row_bytes(one.num_tokens), rows)
        # A beginning is used whenever what follows is, and is to go after it.
        results.folder.touch([one.name for one in reversed(segments)])

    @property
    def _last_end(self) -> int:
        return self._ends[-1][0] if self._ends else 0

    def _names(self, token_ids: Sequence[int], placed: Sequence[PlacedImage]) -> PrefixNames:
        assert self._results is not None
        return PrefixNames(self._root() or "", token_ids, placed)

    def _root(self) -> str | None:
        """None where nothing can be found, or is to be."""
        if self._results is None or self._results.folder is None:
            return None
        return self._results.prefix_root(self.engine.kv_dtype, self.engine.vision_rule)

    def _cuts(self, placed: Sequence[PlacedImage], prompt: TextPrompt) -> list[int]:
        """Where chunks end so that they can be stored; nowhere without a folder, as it costs a little."""
        if not self.has_folder:
            return []
        return image_groups_end(placed, len(prompt.token_ids))

    def _find_stored(
        self, token_ids: Sequence[int], placed: Sequence[PlacedImage]
    ) -> list[tuple[Segment, SegmentKind]]:
        """The segments of the prompt that are in the cache folder, from the first token on."""
        if self._root() is None:
            return []
        assert self._results is not None
        assert self._results.folder is not None
        num_tokens, cuts = len(token_ids), image_groups_end(placed, len(token_ids))

        def next_stop(start: int) -> int:
            ends = [cut - start for cut in cuts]
            return start + chunk_stops(num_tokens - start, self.engine.chunk_tokens, ends)[0]

        return self._names(token_ids, placed).find(self._results.folder.names(), next_stop)

    def _restore(
        self, stored: Sequence[tuple[Segment, SegmentKind]], prompt: TextPrompt, images: Sequence[ChatMedia]
    ) -> int:
        """Read segments from the folder behind those that are there already; how many tokens came.

        A segment that turns out to be damaged, or is gone by now, ends it; what follows will be computed.
        """
        assert self._results is not None
        folder = self._results.folder
        assert folder is not None
        have = [
            segment.stop
            for (segment, kind), end in zip(stored, self._ends, strict=False)
            if (segment.stop, kind) == end and _cut_image(prompt, segment.stop) is None
        ]
        self._rewind(max(have, default=0))
        before = len(self._token_ids)
        for segment, kind in stored:
            if segment.stop <= before:
                continue

            def fill(pieces: Iterable[torch.Tensor], one: Segment = segment) -> bool:
                return folder.read(one.name, self.engine.row_bytes(one.num_tokens), map(bytes_of, pieces))

            if not self.engine.restore(segment.num_tokens, fill):
                break
            self._token_ids.extend(prompt.token_ids[segment.start : segment.stop])
            self._ends.append((segment.stop, kind))
        self._images = [
            (span.start, image)
            for span, image in zip(prompt.media, images, strict=True)
            if span.start < len(self._token_ids)
        ]
        cut = _cut_image(prompt, len(self._token_ids))
        self._rewind(len(self._token_ids) if cut is None else cut.start)
        return max(0, len(self._token_ids) - before)

    def _input(self, image: ChatMedia) -> MediaInput:
        features = None
        if self._results is not None:
            shape = (image.num_tokens, self._config.text.hidden_size)
            features = self._results.find_features(image.content_key, shape)
        return image.patches() if features is None else EncodedImage(features, image.grid)

    def _rewind(self, length: int) -> None:
        del self._token_ids[length:]
        self._ends = [end for end in self._ends if end[0] <= length]
        self._images = [(start, image) for start, image in self._images if start < length]
        # Always, even where nothing is cut off: a decode that Ctrl-C hit may have left more in the cache.
        grids = [image.grid for _, image in self._images]
        next_position = 0
        if length:
            _, next_position = model_positions(self._token_ids, grids, self._config)
        self.engine.rewind(Mark(length, next_position))


def _cut_image(prompt: TextPrompt, length: int) -> range | None:
    """The image of which the first `length` tokens have a part."""
    return next((span for span in prompt.media if span.start < length < span.stop), None)


def _placed(prompt: TextPrompt, images: Sequence[ChatMedia]) -> list[PlacedImage]:
    pairs = zip(prompt.media, images, strict=True)
    return [PlacedImage(span.start, span.stop, image.content_key) for span, image in pairs]
