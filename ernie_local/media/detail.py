"""Bounds the tokens of images: by a number, or as closely as `detail` says that the model is to look.

A bound only shrinks. It is part of the image processor's settings, so that patches of other settings are
never taken for these.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ernie_local.errors import UsageError, parameter
from ernie_local.media.image_size import measure_image
from ernie_local.media.processor_config import LARGEST_PIXELS, ImageProcessorConfig

Detail = Literal["low", "high", "auto"]
# 448 x 448 pixels: enough to tell what an image shows, and to read its headlines. docs/performance.md.
LOW_DETAIL_TOKENS = 256


def check_detail(detail: str) -> None:
    """Raise UsageError for a word that is none of Detail."""
    if detail not in get_args(Detail):
        raise UsageError(
            f"{parameter('detail', detail)} is unknown",
            "it says how closely the model looks at an image",
            f"one of {', '.join(get_args(Detail))}",
        )


def least_image_tokens(processor: ImageProcessorConfig) -> int:
    """The smallest bound: images of fewer pixels than min_pixels are enlarged."""
    return -(-max(processor.min_pixels, processor.factor**2) // processor.factor**2)


def with_image_tokens(processor: ImageProcessorConfig, image_tokens: int | None) -> ImageProcessorConfig:
    """The settings with at most this many tokens an image; None leaves them, and so does a larger bound.

    UsageError for fewer than the smallest image takes, and more than the model can see.
    """
    if image_tokens is None:
        return processor
    least, most = least_image_tokens(processor), LARGEST_PIXELS // processor.factor**2
    if not least <= image_tokens <= most:
        raise UsageError(
            f"{parameter('image_tokens')} is {image_tokens}, {least} to {most} are possible",
            f"smaller images are enlarged to {processor.min_pixels} pixels, and a token stands for "
            f"{processor.factor} x {processor.factor} of them",
            f"{parameter('image_tokens', min(max(image_tokens, least), most))}",
        )
    bounds = [image_tokens] if processor.max_tokens is None else [image_tokens, processor.max_tokens]
    max_pixels = min(processor.max_pixels, image_tokens * processor.factor**2)
    return replace(processor, max_pixels=max_pixels, max_tokens=min(bounds))


@dataclass(frozen=True, slots=True)
class WantedImage:
    """An image of (width, height) `size`, and how closely the model is to look at it by `processor`."""

    name: str
    size: tuple[int, int]
    detail: Detail
    processor: ImageProcessorConfig

    def limited(self, bound: int) -> ImageProcessorConfig:
        """The settings with at most this many tokens, or as few as they can give."""
        bound = max(bound, least_image_tokens(self.processor))
        if bound * self.processor.factor**2 >= self.processor.max_pixels:
            return self.processor
        return with_image_tokens(self.processor, bound)

    def num_tokens(self, processor: ImageProcessorConfig) -> int:
        """Tokens that it takes by these settings."""
        return measure_image(self.name, self.size, processor).tokens


def settle_details(
    images: Sequence[WantedImage], context_size: int | None
) -> list[tuple[ImageProcessorConfig, tuple[str, ...]]]:
    """The settings for each of the images that are given together, and notes for the user.

    high: those of the processor. low: at most LOW_DETAIL_TOKENS. auto: as high where all images together take
    at most half of the context; else those with auto share what the others leave of that half by one bound
    for all. It is as large as possible, and never below that of low. context_size: in tokens; None: auto is
    high.
    """
    settled = [
        image.limited(LOW_DETAIL_TOKENS) if image.detail == "low" else image.processor for image in images
    ]
    autos = [image for image in images if image.detail == "auto"]
    if not autos or context_size is None:
        return [(processor, ()) for processor in settled]
    total = sum(image.num_tokens(processor) for image, processor in zip(images, settled, strict=True))
    if total <= context_size // 2:
        return [(processor, ()) for processor in settled]
    room = context_size // 2 - total + sum(image.num_tokens(image.processor) for image in autos)

    def is_too_much(bound: int) -> bool:
        return sum(image.num_tokens(image.limited(bound)) for image in autos) > room

    most = max(image.processor.max_pixels // image.processor.factor**2 for image in autos)
    bound = LOW_DETAIL_TOKENS + bisect_left(range(LOW_DETAIL_TOKENS + 1, most), True, key=is_too_much)
    note = (
        f"{parameter('detail', 'auto')}: at most {bound} tokens, as all images take {total}, more than "
        f"half of the context of {context_size}"
    )
    results: list[tuple[ImageProcessorConfig, tuple[str, ...]]] = []
    for image, processor in zip(images, settled, strict=True):
        limited = image.limited(bound) if image.detail == "auto" else processor
        is_shrunk = image.num_tokens(limited) < image.num_tokens(processor)
        results.append((limited, (note,) if is_shrunk else ()))
    return results
