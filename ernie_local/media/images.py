"""Images in whatever form a caller holds them, to the patches that the model reads.

Knows arrays; files are opened, and pixels cut into patches, by media/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ernie_local.errors import UsageError
from ernie_local.media.open_image import open_images
from ernie_local.media.patches import Patches
from ernie_local.media.processor import ImageProcessorConfig, image_to_patches

ImageSource = str | Path | bytes | Image.Image | torch.Tensor | np.ndarray[Any, Any] | Patches

_CHANNEL_COUNTS = (1, 3, 4)


def to_patches(images: Sequence[ImageSource], processor: ImageProcessorConfig) -> list[Patches]:
    """Patches of every image in order; a document gives one for each of its pages.

    Arrays are uint8, (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4
    channels. Anything else raises UsageError; files that cannot be read raise InputUnreadable.
    """
    patches: list[Patches] = []
    for index, given in enumerate(images):
        if isinstance(given, Patches):
            patches.append(given)
            continue
        source = _array_to_image(given, index) if isinstance(given, torch.Tensor | np.ndarray) else given
        if not isinstance(source, str | Path | bytes | Image.Image):
            raise UsageError(
                f"image {index + 1} is a {type(source).__name__}",
                "an image is a path, bytes, a PIL image, a uint8 array or Patches",
                "give the path of the file",
            )
        patches.extend(image_to_patches(opened.image, processor) for opened in open_images(source))
    return patches


def _array_to_image(array: torch.Tensor | np.ndarray[Any, Any], index: int) -> Image.Image:
    pixels: np.ndarray[Any, Any] = array.cpu().numpy() if isinstance(array, torch.Tensor) else array
    shape = pixels.shape
    # (channels, height, width) first: an image 3 pixels wide is rarer than one that is channels-first.
    if pixels.ndim == 3 and shape[0] in _CHANNEL_COUNTS:
        pixels = pixels.transpose(1, 2, 0)  # (height, width, channels)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]  # (height, width)
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in _CHANNEL_COUNTS)
    if pixels.dtype != np.uint8 or not is_image or pixels.size == 0:
        raise UsageError(
            f"image {index + 1} is an array of {pixels.dtype} with shape {tuple(shape)}",
            "an array holds uint8 pixels, (height, width, channels) or (channels, height, width)",
            "convert it to uint8 with 1, 3 or 4 channels, or give the path of the file",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
