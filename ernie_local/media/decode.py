"""Decodes the bytes of an image file to upright RGB images, with Pillow.

Checks the number of pixels, and handles rotation, transparency, bit depth and colour.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageStat,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from ernie_local.errors import InputUnreadable
from ernie_local.media.decoding_memory import check_decoding_memory
from ernie_local.media.image_size import MOST_VISIBLE_PIXELS, check_aspect_ratio
from ernie_local.media.image_view import CropBox, ImageView, ViewBox, whole_pixels
from ernie_local.media.pages import Page, PageRequest, choose_pages

# Decoding takes up to 4 bytes a pixel; what the model cannot see is dropped then, strip by strip.
MAX_PIXELS = 100_000_000
_STRIP_ROWS = 256
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
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}
# What Pillow may have been built without: its own name, the library, and a command that converts.
_OPTIONAL = {
    "WebP": ("webp", "libwebp", "dwebp in.webp -o out.png"),
    "AVIF": ("avif", "libavif", "avifdec in.avif out.png"),
    "JPEG 2000": ("jpg_2000", "OpenJPEG", "opj_decompress -i in.jp2 -o out.png"),
}
_MORE_THAN_ONE = {"HEIC": "a file of several images, of which the main one is read"}
# What Pillow raises for damaged bytes; any other error is a defect and is not caught.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError,
    struct.error, zlib.error,
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
# A JPEG may hold any number of passes over all of its pixels; common ones have up to 10.
_MAX_JPEG_PASSES, _JPEG_PASS = 100, b"\xff\xda"
# A drawing on a transparent ground is put on black where that shows this many times more of it than white.
_CLEARLY_MORE = 4.0
_LOOKED_AT_PIXELS = 512  # of the longer side
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def decode_pages(
    data: bytes, kind: str, name: str, request: PageRequest | None, part: ViewBox | None = None
) -> list[Page]:
    """Decode a file of format `kind`, as `sniff_format` names it.

    Only TIFF has pages. Of a moving image the first frame is read, with a note. part: keep only this, as of
    `to_upright_rgb`. InputUnreadable for damaged
    files, pages that are not there, and, before it is decoded, for more than MAX_PIXELS pixels in a page or
    MAX_DOCUMENT_PIXELS in all pages, or for too much memory.
    """
    decoder = _find_decoder(kind, name)
    num_passes = data.count(_JPEG_PASS) if kind == "JPEG" else 0
    if num_passes > _MAX_JPEG_PASSES:
        raise InputUnreadable(
            f"{name}: a JPEG image of {num_passes} passes, at most {_MAX_JPEG_PASSES} are read",
            "it was made to take long, or is damaged",
            "open it in an image viewer and save it anew",
        )
    pages: list[Page] = []
    with reporting_damage(name, kind, len(data)):
        image = decoder(io.BytesIO(data))
        num_pages = getattr(image, "n_frames", 1) if kind == "TIFF" else 1
        moves = kind != "TIFF" and getattr(image, "is_animated", False)
    notes = (_MORE_THAN_ONE.get(kind, "a moving image, of which the first frame is read"),) if moves else ()
    total_pixels = kept_pixels = 0
    for page in choose_pages(request, num_pages, name):
        with reporting_damage(name, kind, len(data)):
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
            page_pixels = image.width * image.height // (_reduction(image) ** 2 if part is None else 1)
            check_decoding_memory(
                image,
                kind,
                page_pixels,
                kept_pixels,
                num_passes=num_passes,
                num_bytes=len(data),
                name=name,
            )
            kept_pixels += page_pixels
            image.load()
        flat, view, flat_notes = to_upright_rgb(image, name, part)
        pages.append(Page(page, num_pages, flat, view, notes + flat_notes))
    return pages


def _find_decoder(kind: str, name: str) -> Callable[[BinaryIO], ImageFile.ImageFile]:
    """What opens a file of this format; InputUnreadable where this installation cannot."""
    if kind == "HEIC":
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            raise InputUnreadable(
                f"{name}: holds HEIC data, which this installation cannot read",
                f"its decoder is optional: {error}",
                "pip install 'ernie-local[heic]', or convert the image: heif-convert in.heic out.jpg, on a "
                "Mac: sips -s format jpeg in.heic --out out.jpg",
            ) from error
        decoder: Callable[[BinaryIO], ImageFile.ImageFile] = HeifImageFile
        return decoder
    feature, library, conversion = _OPTIONAL.get(kind, ("", "", ""))
    if feature and not features.check(feature):
        raise InputUnreadable(
            f"{name}: holds {kind} data, which this Pillow cannot read",
            f"Pillow was built without {library}",
            f"pip install --force-reinstall pillow, or convert the image: {conversion}",
        )
    return _DECODERS[kind]


def to_upright_rgb(
    image: Image.Image, name: str, part: ViewBox | None = None
) -> tuple[Image.Image, ImageView, tuple[str, ...]]:
    """A new RGB image, where it lies in `image`, and notes for the user.

    It is turned by its EXIF data, opaque, and has 16-bit gray in 8 bits. part: (left, top, right, bottom)
    before that turn, of which the pixels are kept as they are; None: all, reduced where they are very many.

    What is transparent becomes white, or black under a drawing that white would hide.
    InputUnreadable for gray of more bits, and for colours that cannot be converted to RGB.
    """
    check_size(image.width, image.height, name)
    with reporting_damage(name, image.format or image.mode, None):
        image.load()
        orientation, notes = _orientation(image)
        box = None if part is None else whole_pixels(part, image.size)
        flat, more_notes = _flatten(image, name, box)
    notes += more_notes
    turn = _TURNS.get(orientation)
    upright = flat if turn is None else flat.transpose(turn)
    turned = 1 if turn is None else orientation
    if box is None:
        return upright, ImageView.whole(upright.size, image.size, turned), notes
    view = ImageView.unreduced(image.size, turned)
    crop = whole_pixels(view.box_from_original(box, "pixels"), view.opened_size)
    return upright, view.cropped(crop), notes


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


def _flatten(image: Image.Image, name: str, part: CropBox | None) -> tuple[Image.Image, tuple[str, ...]]:
    levels = _levels_of_16_bits(image) if image.mode.startswith("I;16") else None
    if image.mode in ("I", "F"):
        raise InputUnreadable(
            f"{name}: gray of 32 bits, at most 16 are read",
            "such files carry measurements, and which value is white is not said",
            "save it with 8 bits: magick in.tif -auto-level -depth 8 out.png",
        )
    notes: tuple[str, ...] = ()
    ground = "white"
    if levels is None and image.has_transparency_data:
        # Every so many pixels tell the ground.
        step = -(-max(image.size) // _LOOKED_AT_PIXELS)
        few = image.resize((-(-image.width // step), -(-image.height // step)), Image.Resampling.NEAREST)
        if _contrast_on(few, "black") > _CLEARLY_MORE * _contrast_on(few, "white"):
            ground = "black"
            notes = ("a light drawing on a transparent ground, read on black",)
    factor = _reduction(image) if part is None else 1
    left, upper, right, lower = part or (0, 0, *image.size)
    # In strips: the steps of a whole copy would take up to 900 MB more.
    flat = Image.new("RGB", (-(-(right - left) // factor), -(-(lower - upper) // factor)))
    for top in range(upper, lower, factor * _STRIP_ROWS):
        bottom = min(top + factor * _STRIP_ROWS, lower)
        strip = _on_ground(image.crop((left, top, right, bottom)), ground, levels)
        flat.paste(strip.reduce(factor), (0, (top - upper) // factor))
    if factor > 1:
        size = f"{image.width} x {image.height}"
        notes += (f"a large image of {size} pixels, read at 1/{factor} of its side length",)
    return flat, notes


def _reduction(image: Image.Image) -> int:
    """By which factor each side is divided: the model does not see more."""
    return max(1, math.isqrt(image.width * image.height // MOST_VISIBLE_PIXELS))


def _on_ground(image: Image.Image, ground: str, levels: Sequence[int] | None = None) -> Image.Image:
    """An RGB image, with one colour behind what is transparent. levels: of 16-bit gray in 8 bits."""
    if levels is not None:
        return image.convert("I").point(levels, "L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    colour = image.convert("RGBA")
    flat = Image.new("RGB", colour.size, ground)
    flat.paste(colour, mask=colour.getchannel("A"))
    return flat


def _contrast_on(image: Image.Image, ground: str) -> float:
    """Standard deviation of its gray."""
    return ImageStat.Stat(_on_ground(image, ground).convert("L")).stddev[0]


def _levels_of_16_bits(image: Image.Image) -> list[int]:
    """Each value in 8 bits, by the file's bit depth (a TIFF may have 12); Pillow's own convert would clip."""
    bits, photometric = 16, None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        depths = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
        bits = depths[0] if isinstance(depths, tuple) else depths
        photometric = image.tag_v2.get(_PHOTOMETRIC)
    white = (1 << bits) - 1
    table = [min(255, round(value * 255 / white)) for value in range(1 << 16)]
    if photometric == _WHITE_IS_ZERO:
        table = [255 - value for value in table]
    return table


def _too_large(what: str) -> InputUnreadable:
    return InputUnreadable(
        f"{what}, at most {MAX_PIXELS:,} are read",
        "decoding it would fill the memory, and the model looks at 5 million pixels at most",
        "shrink it (magick in.png -resize 4000x4000 out.png), or crop it to the part that matters",
    )


@contextmanager
def reporting_damage(name: str, kind: str, num_bytes: int | None) -> Iterator[None]:
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
