"""Describes the conversation to plan for: a context that is filled, images first, and what an image takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.config import ModelConfig, TextConfig
from ernie_local.errors import DoesNotFit
from ernie_local.media.image_size import check_aspect_ratio, smart_resize
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
# float32 doubles a 16-bit checkpoint; above this size, the memory is usually worth more than the precision.
_LARGEST_FLOAT32_CHECKPOINT = 4 << 30
_TAGS = 2  # tokens around the placeholders of each image
_ANSWER_TOKENS = 512  # that a context should hold besides images


@dataclass(frozen=True, slots=True)
class PricedImage:
    """What an image costs, by its size alone.

    Sizes are (width, height) in pixels; patches: squares that the tower sees; tokens: in the prompt.
    """

    name: str
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    patches: int
    tokens: int

    @staticmethod
    def of(name: str, width: int, height: int, processor: ImageProcessorConfig) -> PricedImage:
        """For an image of width x height pixels; InputUnreadable if it is too thin for the model."""
        check_aspect_ratio(width, height, name)
        new_height, new_width = smart_resize(
            height, width, processor.factor, processor.min_pixels, processor.max_pixels
        )
        tokens = (new_height // processor.factor) * (new_width // processor.factor)
        patches = tokens * processor.merge_size**2
        return PricedImage(name, (width, height), (new_width, new_height), patches, tokens)

    @property
    def scale(self) -> float:
        """Resized side length as a share of the original one."""
        (width, height), (new_width, new_height) = self.original_size, self.resized_size
        return float((new_width * new_height / (width * height)) ** 0.5)

    def pixel_bytes(self, config: ModelConfig) -> int:
        """Its patches as numbers, which stay as long as the conversation."""
        return self.patches * config.vision.patch_values * FLOAT_BYTES

    def encoder_bytes(self, config: ModelConfig) -> int:
        """What the tower takes while it encodes the image."""
        return encoding_bytes(config.vision, [self.patches])


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A chat to plan for: tokens at its end, dtype of computation, dtype of the KV cache, images."""

    context_size: int
    dtype: str
    kv_dtype: str
    images: tuple[PricedImage, ...] = ()

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


def prompt_tokens(images: Sequence[PricedImage]) -> int:
    """Tokens of all images in a prompt, with their tags."""
    return sum(image.tokens + _TAGS for image in images)


def largest_prompt_bytes(
    config: ModelConfig, processor: ImageProcessorConfig, num_tokens: int, item_bytes: int
) -> int:
    """Memory of a prompt while it is read, if images fill `num_tokens`, one of them of the largest size."""
    patches = num_tokens * processor.merge_size**2
    largest = min(patches, processor.max_pixels // processor.patch_size**2)
    return prompt_room(config, num_tokens, DEFAULT_CHUNK_TOKENS, largest, patches, item_bytes)


def default_dtype(checkpoint_bytes: int, *, is_packed: bool) -> str:
    """The dtype that a chat on the CPU computes in by default; packed weights stay as they are in either."""
    return "float32" if is_packed or checkpoint_bytes <= _LARGEST_FLOAT32_CHECKPOINT else "bfloat16"


def default_kv_dtype(dtype: str, *, is_packed: bool) -> str:
    """The default dtype of the KV cache: what models are trained in, if the weights are packed."""
    return "bfloat16" if is_packed else dtype


def check_context(asked: int | None, config: ModelConfig) -> int:
    """The context in tokens: as asked, else the model's default. DoesNotFit above the model's limit."""
    most = config.text.max_position_embeddings
    if asked is not None and asked > most:
        raise DoesNotFit(
            f"--ctx-size {asked} is more than the {most} tokens that this model was made for",
            "it was not trained on positions beyond that",
            f"--ctx-size {most} or less",
        )
    return asked or config.text.default_context_size


def check_images(images: tuple[PricedImage, ...], context_size: int, most: int) -> None:
    """DoesNotFit where images alone fill the context; most: the model's limit in tokens."""
    tokens = prompt_tokens(images)
    if tokens >= context_size:
        enough = -(-(tokens + _ANSWER_TOKENS) // 1024)
        hint = f"--ctx-size {enough}k" if enough << 10 <= most else "fewer or smaller images"
        raise DoesNotFit(
            f"the images take {tokens} tokens, the context has {context_size}",
            "the question and the answer need room, too",
            hint,
        )
