"""From an RGB picture to the patches of the vision tower, bit for bit as the published processor makes them.

Owns the size that a picture is brought to, the arithmetic on pixels and their order in a patch.
Knows nothing of files that hold pictures or settings, of token ids or of the model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media.patches import Patches
from ernie_local.media.processor_config import ImageProcessorConfig, read_processor_config

__all__ = [
    "MAX_ASPECT_RATIO",
    "ImageProcessorConfig",
    "check_aspect_ratio",
    "image_to_patches",
    "read_processor_config",
    "smart_resize",
]

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) that a picture is brought to.

    Both are multiples of `factor`; the shape is kept, and height * width stays between the limits, as far
    as whole multiples allow. The rounding is the published one, also where it looks odd (thin pictures). A
    side more than 200 times the other raises InputUnreadable, as the published processor refuses it.
    """
    check_aspect_ratio(width, height, "the picture")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def check_aspect_ratio(width: int, height: int, name: str) -> None:
    """Refuse (InputUnreadable) a picture so long and thin that the published processor refuses it too."""
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputUnreadable(
            f"{name}: {width} x {height} pixels, one side {ratio:.1f} times the other, at most "
            f"{MAX_ASPECT_RATIO} times",
            "the model cuts a picture into squares, and a strip this thin would be distorted",
            "crop it into shorter pieces and give each as a picture of its own",
        )


def image_to_patches(image: Image.Image, config: ImageProcessorConfig) -> Patches:
    """Resize (bicubic), rescale, normalize and cut an RGB picture into patches.

    Every value equals the published processor's bit for bit. The picture must have mode "RGB" (ValueError),
    which `open_images` sees to; a side over 200 times the other raises InputUnreadable.
    """
    if image.mode != "RGB":
        raise ValueError(f"image_to_patches needs an RGB picture, not mode {image.mode!r}")
    height, width = smart_resize(
        image.height, image.width, config.factor, config.min_pixels, config.max_pixels
    )
    pixels = np.asarray(image.resize((width, height), resample=Image.Resampling.BICUBIC))
    patch, merge = config.patch_size, config.merge_size
    rows, columns = height // patch, width // patch
    # (h, w, channels) -> (h / merge, merge, patch, w / merge, merge, patch, channels)
    windows = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    # -> (h / merge, w / merge, merge, merge, channels, patch, patch) -> (patches, channels, patch * patch)
    codes = windows.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, patch * patch)
    values = np.empty(codes.shape, dtype=np.float32)
    for channel, table in enumerate(_value_table(config)):
        values[:, channel] = table[codes[:, channel]]

    import torch

    return Patches(
        # (patches, channels, patch * patch) -> (patches, channels * patch * patch)
        pixel_values=torch.from_numpy(values.reshape(rows * columns, -1)),
        grid=(1, rows, columns),
        original_size=image.size,
        resized_size=(width, height),
        num_tokens=rows * columns // merge**2,
    )


def _value_table(config: ImageProcessorConfig) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What each byte becomes: (channels, 256) float32.

    Rounded where the published processor rounds: the product in float64, then to float32, then difference
    and quotient in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean = np.array(config.mean, dtype=np.float32)[:, None]
    std = np.array(config.std, dtype=np.float32)[:, None]
    return (scaled - mean) / std
