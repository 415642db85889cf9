"""Tracks which prompt the engine's cache holds, and computes only what another prompt adds to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ernie_local.config import ModelConfig
from ernie_local.engine import Engine, Mark
from ernie_local.media.tokens import positions_3d
from ernie_local.progress import OnProgress
from ernie_local.session.image import ChatImage
from ernie_local.text.template import TextPrompt


class CachedSequence:
    """The engine together with the ids and images that its cache was filled with."""

    def __init__(self, engine: Engine, config: ModelConfig) -> None:
        self.engine = engine
        self._config = config
        self._token_ids: list[int] = []
        self._images: list[tuple[int, ChatImage]] = []  # (index of the first placeholder, image)

    def kept_length(self, prompt: TextPrompt, images: Sequence[ChatImage]) -> int:
        """How many of the prompt's ids need no computing: the cache holds them, and no image is cut.

        The last id always needs it, as its logits are what comes next.
        """
        length = min(max(len(prompt.token_ids) - 1, 0), len(self._token_ids), self.engine.length)
        pairs = zip(prompt.token_ids[:length], self._token_ids, strict=False)
        length = next((index for index, (new, old) in enumerate(pairs) if new != old), length)
        for index, (span, image) in enumerate(zip(prompt.images, images, strict=True)):
            if span.start >= length:
                break
            # Placeholders of two images look alike: only an image of the same pixels may stay.
            is_same = self._images[index : index + 1] == [(span.start, image)]
            if not is_same or span.stop > length:
                return span.start
        return length

    def trim(self, prompt: TextPrompt, images: Sequence[ChatImage]) -> None:
        """Forget everything behind the part that the cache has in common with `prompt`."""
        self._rewind(self.kept_length(prompt, images))

    def advance_to(
        self,
        prompt: TextPrompt,
        images: Sequence[ChatImage],
        should_stop: Callable[[], bool],
        on_progress: OnProgress | None = None,
    ) -> torch.Tensor:
        """Make the cache hold exactly `prompt`, computing only what is new; the logits (vocab,) after it.

        Interrupted where `should_stop` says so; the cache then holds the part that was there before.
        """
        kept = self.kept_length(prompt, images)
        self._rewind(kept)
        placed = [(span.start, image) for span, image in zip(prompt.images, images, strict=True)]
        new_images = [(start, image) for start, image in placed if start >= kept]
        patches = [image.patches() for _, image in new_images]
        logits = self.engine.prefill(prompt.token_ids[kept:], patches, should_stop, on_progress)
        self._token_ids.extend(prompt.token_ids[kept:])
        self._images.extend(new_images)
        for _, image in new_images:
            image.release()
        return logits

    def decode(self, token_id: int) -> torch.Tensor:
        """Append one id; the logits (vocab,) after it."""
        logits = self.engine.decode(token_id)
        self._token_ids.append(token_id)
        return logits

    def append(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Append ids of plain text in one go; the logits (vocab,) after them."""
        logits = self.engine.prefill(token_ids)
        self._token_ids.extend(token_ids)
        return logits

    def _rewind(self, length: int) -> None:
        del self._token_ids[length:]
        self._images = [(start, image) for start, image in self._images if start < length]
        # Always, even where nothing is cut off: a decode that Ctrl-C hit may have left more in the cache.
        grids = [image.grid for _, image in self._images]
        next_position = 0
        if length:
            vision = self._config.vision
            _, next_position = positions_3d(
                self._token_ids,
                grids,
                self._config.media,
                vision.spatial_merge_size,
                temporal_merge=vision.temporal_merge_size,
            )
        self.engine.rewind(Mark(length, next_position))
