"""Describes the conversation to plan for: a context that is filled, images first, and what an image takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.config import ModelConfig, TextConfig
from ernie_local.defaults import roomier_context
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.media.image_size import ImageReport
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.memory_use import (
    DEFAULT_CHUNK_TOKENS,
    FLOAT_BYTES,
    KV_ITEM_BYTES,
    KVSize,
    encoding_bytes,
    prompt_room,
)

WEIGHT_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_TAGS = 2  # tokens around the placeholders of each image


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A chat to plan for: tokens at its end, dtype of computation, dtype of the KV cache, images."""

    context_size: int
    dtype: str
    kv_dtype: str
    images: tuple[ImageReport, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Tokens of all images with their tags."""
        return prompt_tokens(self.images)

    @property
    def item_bytes(self) -> int:
        """Bytes of a number in weights that are not packed."""
        return WEIGHT_ITEM_BYTES[self.dtype]

    def kv_size(self, config: TextConfig) -> KVSize:
        """Size of the KV cache."""
        return KVSize.of(config, self.context_size, KV_ITEM_BYTES[self.kv_dtype])


def pixel_bytes(image: ImageReport, config: ModelConfig) -> int:
    """An image's patches as numbers, which stay as long as the conversation."""
    return image.patches * config.vision.patch_values * FLOAT_BYTES


def encoder_bytes(image: ImageReport, config: ModelConfig) -> int:
    """What the tower takes while it encodes an image."""
    return encoding_bytes(config.vision, [image.patches])


def prompt_tokens(images: Sequence[ImageReport]) -> int:
    """Tokens of all images in a prompt, with their tags."""
    return sum(image.tokens + _TAGS for image in images)


def largest_prompt_bytes(
    config: ModelConfig, processor: ImageProcessorConfig, num_tokens: int, item_bytes: int
) -> int:
    """Memory of a prompt while it is read, if images fill `num_tokens`, one of them of the largest size."""
    patches = num_tokens * processor.merge_size**2
    largest = min(patches, processor.max_pixels // processor.patch_size**2)
    return prompt_room(config, num_tokens, DEFAULT_CHUNK_TOKENS, largest, patches, item_bytes)


def check_images(images: tuple[ImageReport, ...], context_size: int, most: int) -> None:
    """DoesNotFit where images alone fill the context; most: the model's limit in tokens."""
    tokens = prompt_tokens(images)
    if tokens >= context_size:
        enough = roomier_context(tokens, most)
        hint = "fewer or smaller images" if enough is None else parameter("context_size", enough)
        raise DoesNotFit(
            f"the images take {tokens} tokens, the context has {context_size}",
            "the question and the answer need room, too",
            hint,
        )
