"""Decodes the bytes of an image file to upright RGB images on white, with Pillow.

Checks the number of pixels, and handles rotation, transparency, bit depth and colour.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from ernie_local.errors import InputUnreadable
from ernie_local.media.image_size import check_aspect_ratio
from ernie_local.media.pages import Page, PageRequest, choose_pages

# Decoding takes 4 bytes a pixel and a copy; the model sees 5 million pixels at most.
MAX_PIXELS = 100_000_000
MAX_DOCUMENT_PIXELS = 3 * MAX_PIXELS

# Image.open is not used: the error of its own limit has no width and height, and it warns below the limit.
# (JPEG: the first image of a multi-image file is a plain JPEG.)
_DECODERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
# What Pillow raises for damaged bytes; any other error is a defect and is not caught.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    zlib.error,
)  # fmt: skip
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255, 255)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def decode_pages(data: bytes, kind: str, name: str, request: PageRequest | None) -> list[Page]:
    """Decode a file of format `kind` ("PNG", "JPEG", "WebP", "GIF", "TIFF" or "BMP").

    Only TIFF has pages. Of a moving image the first frame is read, with a note. InputUnreadable for damaged
    files, pages that are not there, and, before it is decoded, for more than MAX_PIXELS pixels in a page or
    MAX_DOCUMENT_PIXELS in all pages.
    """
    if kind == "WebP" and not features.check("webp"):
        raise InputUnreadable(
            f"{name}: holds WebP data, which this Pillow cannot read",
            "Pillow was built without libwebp",
            "pip install --force-reinstall pillow, or convert the image: dwebp in.webp -o out.png",
        )
    pages: list[Page] = []
    with _reported(name, kind, len(data)):
        image = _DECODERS[kind](io.BytesIO(data))
        num_pages = getattr(image, "n_frames", 1) if kind == "TIFF" else 1
        moves = kind != "TIFF" and getattr(image, "is_animated", False)
    notes = ("a moving image, of which the first frame is read",) if moves else ()
    total_pixels = 0
    for page in choose_pages(request, num_pages, name):
        with _reported(name, kind, len(data)):
            if page > 1:
                image.seek(page - 1)
            check_size(image.width, image.height, name)
            total_pixels += image.width * image.height
            if total_pixels > MAX_DOCUMENT_PIXELS:
                most = f"at most {MAX_DOCUMENT_PIXELS:,} at once"
                fewer = f"{name}:{pages[0].number}-{page - 1}"
                raise InputUnreadable(
                    f"{name}: {total_pixels:,} pixels up to page {page}, {most}",
                    "all pages asked for are held in memory together",
                    f"choose fewer pages ({fewer} would do), or scan with fewer dots an inch",
                )
            image.load()
        flat, flat_notes = to_upright_rgb(image, name)
        pages.append(Page(page, num_pages, flat, notes + flat_notes))
    return pages


def to_upright_rgb(image: Image.Image, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A new RGB image and notes for the user: turned by its EXIF data, on white, 16-bit gray in 8 bits.

    InputUnreadable for gray of more bits, and for colours that cannot be converted to RGB.
    """
    check_size(image.width, image.height, name)
    with _reported(name, image.format or image.mode, None):
        image.load()
        orientation, notes = _orientation(image)
        flat = _flatten(image, name)
    turn = _TURNS.get(orientation)
    return (flat if turn is None else flat.transpose(turn)), notes


def check_size(width: int, height: int, name: str) -> None:
    """InputUnreadable for an image without pixels, with too many pixels, or too long and thin."""
    if width < 1 or height < 1:
        raise InputUnreadable(
            f"{name}: {width} x {height} pixels", "an image without pixels shows nothing", "save it again"
        )
    if width * height > MAX_PIXELS:
        raise _too_large(f"{name}: {width} x {height} = {width * height:,} pixels")
    check_aspect_ratio(width, height, name)


def _orientation(image: Image.Image) -> tuple[int, tuple[str, ...]]:
    """The EXIF orientation, 1 for upright, with notes. Pillow has already turned a TIFF."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return (orientation if isinstance(orientation, int) else 1), ()
    except _DECODER_ERRORS:
        return 1, ("its EXIF data is damaged, so it was not turned",)


def _flatten(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _gray_16_to_8(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputUnreadable(
            f"{name}: gray of 32 bits, at most 16 are read",
            "such files carry measurements, and which value is white is not said",
            "save it with 8 bits: magick in.tif -auto-level -depth 8 out.png",
        )
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), colour).convert("RGB")
    return image.convert("RGB")


def _gray_16_to_8(image: Image.Image) -> Image.Image:
    """Scale by the file's bit depth (a TIFF may have 12 bits); Pillow's own convert would clip."""
    bits, photometric = 16, None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        depths = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
        bits = depths[0] if isinstance(depths, tuple) else depths
        photometric = image.tag_v2.get(_PHOTOMETRIC)
    white = (1 << bits) - 1
    table = [min(255, round(value * 255 / white)) for value in range(1 << 16)]
    if photometric == _WHITE_IS_ZERO:
        table = [255 - value for value in table]
    return image.convert("I").point(table, "L")


def _too_large(what: str) -> InputUnreadable:
    return InputUnreadable(
        f"{what}, at most {MAX_PIXELS:,} are read",
        "decoding it would fill the memory, and the model looks at 5 million pixels at most",
        "shrink it (magick in.png -resize 4000x4000 out.png), or crop it to the part that matters",
    )


@contextmanager
def _reported(name: str, kind: str, num_bytes: int | None) -> Iterator[None]:
    """Turn what Pillow raises into InputUnreadable, and keep its warnings off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError as error:
            # Raised for WebP and tiles of TIFF alone; only the text has the size.
            stated = re.search(r"[0-9]+", str(error))
            pixels = f"{int(stated[0]):,}" if stated else "too many"
            raise _too_large(f"{name}: {pixels} pixels") from error
        except _DECODER_ERRORS as error:
            size = "" if num_bytes is None else f"; {num_bytes:,} bytes were read"
            raise InputUnreadable(
                f"{name}: this {kind} image cannot be decoded{size}",
                f"it may be cut off or damaged; the decoder says: {error}",
                "download or copy it again, or open it in an image viewer and save it anew",
            ) from error
