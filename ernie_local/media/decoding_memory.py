"""Estimates what decoding an image takes before it is decoded: a file of a kilobyte can ask for gigabytes."""

from __future__ import annotations

from PIL import Image, JpegImagePlugin

from ernie_local.errors import InputUnreadable
from ernie_local.sizes import format_bytes

# What any file may take, or so many bytes for each of its own: a page of fax has 200 pixels for each byte.
_MOST_BYTES, _BYTES_PER_FILE_BYTE = 512 << 20, 1000
# How Pillow stores a pixel; RGB too takes 4 bytes.
RGB_BYTES = 4
_BYTES_BY_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
# Peaks that were measured, by pixel: the planes and frames of the libraries come on top of Pillow's pixels.
_BYTES_BY_FORMAT = {"WebP": 15, "AVIF": 14, "HEIC": 11}
_JPEG2000_BYTES_PER_BAND = 6
_COEFFICIENT_BYTES = 2


def most_decoding_bytes(num_bytes: int) -> int:
    """What decoding all images of a file of `num_bytes` may take."""
    return max(_MOST_BYTES, _BYTES_PER_FILE_BYTE * num_bytes)


def check_decoding_memory(
    image: Image.Image,
    kind: str,
    page_pixels: int,
    earlier_pixels: int,
    *,
    num_passes: int,
    num_bytes: int,
    name: str,
) -> None:
    """InputUnreadable where decoding `image` takes far more memory than a file of `num_bytes` should.

    image: opened, not loaded. kind: its format. page_pixels: of the RGB image that will be made of it.
    earlier_pixels: of those made of earlier pages. num_passes: over a JPEG.
    """
    num_pixels = image.width * image.height
    stored = num_pixels * _BYTES_BY_MODE.get(image.mode, RGB_BYTES)
    decoding = max(stored, num_pixels * _BYTES_BY_FORMAT.get(kind, 0))
    if kind == "JPEG 2000":
        decoding = num_pixels * _JPEG2000_BYTES_PER_BAND * len(image.getbands())
    if isinstance(image, JpegImagePlugin.JpegImageFile) and (num_passes > 1 or "progressive" in image.info):
        # Coefficients wait for the last pass.
        decoding += round(_COEFFICIENT_BYTES * _samples_per_pixel(image) * num_pixels)
    flattening = stored + 2 * RGB_BYTES * page_pixels  # once more where it is turned
    needed = RGB_BYTES * earlier_pixels + max(decoding, flattening)
    most = most_decoding_bytes(num_bytes)
    if needed > most:
        earlier = " after the pages before" if earlier_pixels else ""
        raise InputUnreadable(
            f"{name}: {image.width} x {image.height} pixels of {kind}{earlier} take {format_bytes(needed)} "
            f"to decode, at most {format_bytes(most)} for a file of {num_bytes:,} bytes",
            "images of this size have larger files: this one is nearly blank, or was made to fill the memory",
            "choose fewer pages" if earlier else "shrink it: magick in.png -resize 4000x4000 out.png",
        )


def _samples_per_pixel(image: JpegImagePlugin.JpegImageFile) -> float:
    """Of all components together; 1.5 with the usual halved colours."""
    shares = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
    return sum(shares) / max(shares, default=1)
