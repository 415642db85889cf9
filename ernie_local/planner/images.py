"""What an image costs, by its size alone: the size that it is brought to, patches, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.config import ModelConfig
from ernie_local.media.image_size import check_aspect_ratio, smart_resize
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, encoding_bytes, prompt_room

_FLOAT_BYTES = 4
_TAGS = 2  # before and behind the placeholders of each image


@dataclass(frozen=True, slots=True)
class PricedImage:
    """Sizes are (width, height) in pixels; patches: squares that the tower sees; tokens: in the prompt."""

    name: str
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    patches: int
    tokens: int

    @staticmethod
    def of(name: str, width: int, height: int, processor: ImageProcessorConfig) -> PricedImage:
        """Of an image of so many pixels; InputUnreadable for one too thin for the model."""
        check_aspect_ratio(width, height, name)
        new_height, new_width = smart_resize(
            height, width, processor.factor, processor.min_pixels, processor.max_pixels
        )
        tokens = (new_height // processor.factor) * (new_width // processor.factor)
        patches = tokens * processor.merge_size**2
        return PricedImage(name, (width, height), (new_width, new_height), patches, tokens)

    @property
    def scale(self) -> float:
        """How much of its side length the image keeps."""
        (width, height), (new_width, new_height) = self.original_size, self.resized_size
        return float((new_width * new_height / (width * height)) ** 0.5)

    def pixel_bytes(self, config: ModelConfig) -> int:
        """Of its patches as numbers, which stay as long as the conversation."""
        return self.patches * config.vision.patch_values * _FLOAT_BYTES

    def encoder_bytes(self, config: ModelConfig) -> int:
        """What the tower takes for it while it computes."""
        return encoding_bytes(config.vision, [self.patches])


def prompt_tokens(images: Sequence[PricedImage]) -> int:
    """Tokens of all images in a prompt, with their tags."""
    return sum(image.tokens + _TAGS for image in images)


def largest_prompt_bytes(
    config: ModelConfig, processor: ImageProcessorConfig, num_tokens: int, item_bytes: int
) -> int:
    """What a prompt takes for a while if images fill `num_tokens`, one of them as large as they get."""
    patches = num_tokens * processor.merge_size**2
    largest = min(patches, processor.max_pixels // processor.patch_size**2)
    return prompt_room(config, num_tokens, DEFAULT_CHUNK_TOKENS, largest, patches, item_bytes)
