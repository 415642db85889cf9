"""Computes what images cost in tokens and in memory, by their sizes alone."""

from __future__ import annotations

from collections.abc import Sequence

from ernie_local.config import ModelConfig
from ernie_local.media.image_size import ImageReport
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, encoding_bytes, prompt_room

_FLOAT_BYTES = 4
_TAGS = 2  # before and behind the placeholders of each image


def pixel_bytes(image: ImageReport, config: ModelConfig) -> int:
    """Bytes of an image's patches as numbers, which stay as long as the conversation."""
    return image.patches * config.vision.patch_values * _FLOAT_BYTES


def encoder_bytes(image: ImageReport, config: ModelConfig) -> int:
    """Bytes that the vision tower takes for an image while it computes."""
    return encoding_bytes(config.vision, [image.patches])


def prompt_tokens(images: Sequence[ImageReport]) -> int:
    """Tokens of all images in a prompt, with their tags."""
    return sum(image.tokens + _TAGS for image in images)


def largest_prompt_bytes(
    config: ModelConfig, processor: ImageProcessorConfig, num_tokens: int, item_bytes: int
) -> int:
    """What a prompt takes for a while if images fill `num_tokens`, one of them as large as they get."""
    patches = num_tokens * processor.merge_size**2
    largest = min(patches, processor.max_pixels // processor.patch_size**2)
    return prompt_room(config, num_tokens, DEFAULT_CHUNK_TOKENS, largest, patches, item_bytes)
