"""Cuts images into the patches of the vision tower, bit for bit as the published processor does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ernie_local.media.image_size import measure_image
from ernie_local.media.open_image import ImageSource, OpenedImage, open_images
from ernie_local.media.patches import Patches
from ernie_local.media.processor_config import ImageProcessorConfig

if TYPE_CHECKING:
    import torch


def image_to_patches(image: Image.Image, config: ImageProcessorConfig) -> Patches:
    """Resize (bicubic), rescale, normalize and cut an RGB image into patches.

    ValueError for another mode than "RGB"; InputUnreadable for a side more than 200 times the other.
    """
    if image.mode != "RGB":
        raise ValueError(f"image_to_patches needs an RGB image, not mode {image.mode!r}")
    report = measure_image("the image", image.size, config)
    width, height = report.resized_size
    pixels = np.asarray(image.resize((width, height), resample=Image.Resampling.BICUBIC))
    return Patches(
        pixel_values=frames_to_rows([pixels], config),
        grid=(1, height // config.patch_size, width // config.patch_size),
        original_size=report.original_size,
        resized_size=report.resized_size,
        num_tokens=report.tokens,
    )


def frames_to_rows(frames: Sequence[np.ndarray[Any, Any]], config: ImageProcessorConfig) -> torch.Tensor:
    """Rescale, normalize and cut frames that have their size for the model.

    frames: each (h, w, 3) uint8, all of one size -> pixel_values as of Patches.
    """
    import torch

    patch, merge = config.patch_size, config.merge_size
    rows, columns = (side // patch for side in frames[0].shape[:2])
    values = np.empty((len(frames), rows * columns, 3, patch * patch), dtype=np.float32)
    tables = _value_table(config)
    for pixels, of_frame in zip(frames, values, strict=True):
        # (h, w, channels) -> (h / merge, merge, patch, w / merge, merge, patch, channels)
        windows = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        # -> (h / merge, w / merge, merge, merge, channels, patch, patch)
        # -> (patches, channels, patch * patch)
        codes = windows.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, patch * patch)
        for channel, table in enumerate(tables):
            of_frame[:, channel] = table[codes[:, channel]]
    # (frames, patches, channels, patch * patch) -> (frames * patches, channels * patch * patch)
    return torch.from_numpy(values.reshape(len(frames) * rows * columns, -1))


def to_patches(
    images: Iterable[ImageSource | OpenedImage | Patches], config: ImageProcessorConfig
) -> list[Patches]:
    """Patches of every image and of every page of a document; Patches stay as they are.

    Errors as from `open_images` and `image_to_patches`.
    """
    patches: list[Patches] = []
    for image in images:
        if isinstance(image, Patches):
            patches.append(image)
        else:
            opened = [image] if isinstance(image, OpenedImage) else open_images(image)
            patches += [image_to_patches(page.image, config) for page in opened]
    return patches


def _value_table(config: ImageProcessorConfig) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The value of each byte: (channels, 256) float32.

    Rounded as in the published processor: the product in float64, then difference and quotient in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean = np.array(config.mean, dtype=np.float32)[:, None]
    std = np.array(config.std, dtype=np.float32)[:, None]
    return (scaled - mean) / std
