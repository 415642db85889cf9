"""Cuts images and frames into the patches of ERNIE-4.5-VL, for engines that run code of a model.

Written by ernie-local beside an exported model. It needs transformers 5, Pillow, numpy and torch.
The patches hold bytes: vLLM and SGLang rescale and normalize them themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

_MAX_PIXELS = 28 * 28 * 6177
_VIDEO_MIN_PIXELS, _VIDEO_MAX_PIXELS = 28 * 28 * 299, 28 * 28 * 1196
_LONGEST_RATIO = 200


class Ernie4_5_VLImageProcessor(BaseImageProcessor):
    """Resizes (bicubic) and cuts. size: limits on width * height after the resize."""

    model_input_names = ["images", "grid_thw"]

    def __init__(
        self,
        min_pixels: int = 56 * 56,
        max_pixels: int = _MAX_PIXELS,
        patch_size: int = 14,
        merge_size: int = 2,
        temporal_conv_size: int = 2,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        rescale_factor: float = 1 / 255,
        **others: Any,
    ) -> None:
        super().__init__(**{key: value for key, value in others.items() if key not in ("size", "crop_size")})
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.size = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        self.patch_size = patch_size
        self.merge_size = merge_size
        self.temporal_conv_size = temporal_conv_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.rescale_factor = rescale_factor

    def rows(
        self, frames: Sequence[Image.Image], min_pixels: int, max_pixels: int
    ) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Frames of one size -> (frames * patches, 3 * patch * patch) bytes, and (frames, rows, columns)."""
        patch, merge = self.patch_size, self.merge_size
        width, height = resized_size(*frames[0].size, patch * merge, min_pixels, max_pixels)
        rows, columns = height // patch, width // patch
        cut = []
        for frame in frames:
            pixels = np.asarray(frame.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
            # (h, w, channels) -> (h / merge, merge, patch, w / merge, merge, patch, channels)
            windows = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
            # -> (h / merge, w / merge, merge, merge, channels, patch, patch)
            # -> (patches, channels * patch * patch)
            cut.append(windows.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1))
        return torch.from_numpy(np.concatenate(cut)), (len(frames), rows, columns)


def resized_size(width: int, height: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The width and height, multiples of `factor`, at which the model sees an image of this size.

    ValueError where one side is more than 200 times the other.
    """
    if max(width, height) > _LONGEST_RATIO * min(width, height):
        raise ValueError(
            f"an image of {width} x {height} pixels is too narrow: one side may be "
            f"{_LONGEST_RATIO} times the other at most"
        )
    height_now, width_now = (round(side / factor) * factor for side in (height, width))
    if height_now * width_now > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        height_now, width_now = (
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    elif height_now * width_now < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        height_now, width_now = (math.ceil(side * enlarge / factor) * factor for side in (height, width))
    return width_now, height_now


class Ernie4_5_VLProcessor(ProcessorMixin):
    """Images and videos of a prompt: the patches of all images, then those of all videos, and their grids."""

    def __init__(
        self,
        image_processor: Ernie4_5_VLImageProcessor | None = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.spatial_conv_size = image_processor.merge_size if image_processor else 2
        self.temporal_conv_size = image_processor.temporal_conv_size if image_processor else 2

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        videos: Any = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **_: Any,
    ) -> BatchFeature:
        """text: is turned into ids as it is; engines write the places of images into it themselves."""
        processor = self.image_processor
        cut = [
            processor.rows(
                [_picture(image)], min_pixels or processor.min_pixels, max_pixels or processor.max_pixels
            )
            for image in _listed(images)
        ]
        for video in _listed(videos):
            frames = [_picture(frame) for frame in video]
            # Two frames make a row of tokens, so the last of an odd number counts twice.
            frames += frames[-1:] * (-len(frames) % self.temporal_conv_size)
            cut.append(processor.rows(frames, _VIDEO_MIN_PIXELS, _VIDEO_MAX_PIXELS))
        data: dict[str, Any] = {"images": None, "grid_thw": None}
        if cut:
            data["images"] = torch.cat([rows for rows, _ in cut])
            data["grid_thw"] = torch.tensor([grid for _, grid in cut])
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            data["input_ids"] = [self.tokenizer(one, add_special_tokens=False)["input_ids"] for one in texts]
        return BatchFeature(data)


def _listed(values: Any) -> list[Any]:
    if values is None:
        return []
    return list(values) if isinstance(values, list | tuple) else [values]


def _picture(image: Any) -> Image.Image:
    """Of Pillow, or an array of bytes (h, w, 3)."""
    return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image).astype(np.uint8))
