"""Describes the conversation for which memory and speed are predicted: a full context, images first."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.config import TextConfig
from ernie_local.defaults import roomier_context
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.media.image_size import ImageReport
from ernie_local.model.memory_use import KV_ITEM_BYTES, KVSize
from ernie_local.planner.images import prompt_tokens

WEIGHT_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Conversation:
    """context_size: tokens in the end. dtype: of numbers that are computed with; kv_dtype: of the cache."""

    context_size: int
    dtype: str
    kv_dtype: str
    images: tuple[ImageReport, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Of all images with their tags."""
        return prompt_tokens(self.images)

    @property
    def item_bytes(self) -> int:
        """Of a number in weights that are not packed."""
        return WEIGHT_ITEM_BYTES[self.dtype]

    def kv_size(self, config: TextConfig) -> KVSize:
        """Of its cache."""
        return KVSize.of(config, self.context_size, KV_ITEM_BYTES[self.kv_dtype])


def check_images(images: tuple[ImageReport, ...], context_size: int, most: int) -> None:
    """DoesNotFit where images alone fill the context; `most` is the model's limit."""
    tokens = prompt_tokens(images)
    if tokens >= context_size:
        roomy = roomier_context(tokens, most)
        hint = "fewer or smaller images" if roomy is None else parameter("context_size", roomy)
        raise DoesNotFit(
            f"the images take {tokens} tokens, the context has {context_size}",
            "a question and an answer need tokens as well",
            hint,
        )
