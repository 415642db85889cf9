"""Opens anything that a user calls an image: path, pages of a document, bytes, standard input, array.

The result are RGB images. An image that cannot be read is refused here, before a model is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from PIL import Image

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media.decode import decode_pages, to_upright_rgb
from ernie_local.media.formats import sniff_format
from ernie_local.media.pages import PageRequest, split_page_request
from ernie_local.media.pdf import DEFAULT_DPI, render_pdf

if TYPE_CHECKING:
    import numpy as np
    import torch

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any] | torch.Tensor"

STDIN_MARK = "-"
MAX_FILE_BYTES = 512 << 20
_READ_BYTES = 1 << 20
_CHANNEL_COUNTS = (1, 3, 4)


@dataclass(frozen=True, slots=True, eq=False)
class OpenedImage:
    """An image ready for the image processor.

    image: mode RGB, upright, without transparency. name: for the user; of a file, the text that opens it
    again ("invoice.pdf:2"). notes: what was left out or changed, for the user.
    """

    image: Image.Image
    name: str
    notes: tuple[str, ...] = ()


def open_images(
    source: ImageSource, *, stdin: BinaryIO | None = None, pdf_dpi: float = DEFAULT_DPI
) -> list[OpenedImage]:
    """Open and decode PNG, JPEG, WebP, GIF, TIFF, BMP and PDF images, whatever the file is called.

    source: a path; a path with pages ("invoice.pdf:2", "scan.tif:1-3") unless a file has exactly that name;
    "-" or "-:1-3" for the bytes of `stdin`; bytes; a PIL image (its current frame); or a uint8 array or
    tensor of shape (h, w), (h, w, c) or (c, h, w), c 1, 3 (RGB) or 4 (RGBA). A PDF or TIFF gives one image
    for each page; without chosen pages it is refused above MAX_PAGES. Of a moving GIF, WebP or PNG the first
    frame is read. PDF pages are drawn at `pdf_dpi`.

    InputUnreadable for what cannot be read; size limits are checked before anything is decoded.
    """
    if isinstance(source, Image.Image):
        return [_open_object(source)]
    if isinstance(source, bytes | bytearray | memoryview):
        return _open_bytes(bytes(source), "image", None, pdf_dpi)
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        path_text, request = (text, None) if _exists(text) else split_page_request(text)
        if path_text == STDIN_MARK:
            return _open_bytes(_read_stdin(stdin), "standard input", request, pdf_dpi)
        return _open_bytes(_read_file(path_text), path_text, request, pdf_dpi)
    if hasattr(source, "__array__"):
        return [_open_object(_array_to_image(source))]
    raise InputUnreadable(
        f"a {type(source).__name__} is not an image",
        "paths, bytes, PIL images, NumPy arrays and torch tensors are",
        "give a path, or several images one by one",
    )


def _open_object(source: Image.Image) -> OpenedImage:
    image, notes = to_upright_rgb(source, "image")
    return OpenedImage(image, "image", notes)


def _open_bytes(data: bytes, name: str, request: PageRequest | None, pdf_dpi: float) -> list[OpenedImage]:
    kind = sniff_format(data, name)
    is_pdf = kind == "PDF"
    pages = render_pdf(data, name, request, pdf_dpi) if is_pdf else decode_pages(data, kind, name, request)
    return [
        OpenedImage(page.image, name if page.num_pages == 1 else f"{name}:{page.number}", page.notes)
        for page in pages
    ]


def _exists(text: str) -> bool:
    try:
        Path(text).stat()
    except (OSError, ValueError):
        return False
    return text != STDIN_MARK


def _read_stdin(stdin: BinaryIO | None) -> bytes:
    if stdin is None:
        raise UsageError(
            f"{STDIN_MARK!r} stands for standard input, which is not available here",
            "only the commands have a standard input to read an image from",
            "give the path, or the bytes themselves",
        )
    return _read_all(stdin, "standard input")


def _read_file(path_text: str) -> bytes:
    path = Path(path_text)
    try:
        if path_text.startswith("~") and not _exists(path_text):
            path = path.expanduser()
        if path.is_dir():
            raise InputUnreadable(
                f"{path_text}: is a folder, not an image",
                "images are given one by one, so that their order is clear",
                "name a file in it",
            )
        with path.open("rb") as stream:
            return _read_all(stream, path_text)
    except FileNotFoundError as error:
        raise InputUnreadable(
            f"{path_text}: no such file",
            f"nothing is at {path.absolute()}",
            "check the spelling (pages are written invoice.pdf:1-3), and download images from the web first",
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputUnreadable(
            f"{path_text}: cannot be read",
            f"the system says: {reason}",
            "check the path and the rights to read it",
        ) from error


def _read_all(stream: BinaryIO, name: str) -> bytes:
    """All bytes of a file or pipe. It is read in pieces, as a pipe does not say how long it is."""
    data = bytearray()
    while piece := stream.read(_READ_BYTES):
        data += piece
        if len(data) > MAX_FILE_BYTES:
            raise InputUnreadable(
                f"{name}: {len(data):,} bytes or more, at most {MAX_FILE_BYTES:,} are read",
                "the whole file is held in memory while it is decoded",
                "cut out the pages or the part that matter",
            )
    return bytes(data)


def _array_to_image(source: Any) -> Image.Image:
    """A PIL image of a NumPy array or torch tensor.

    A shape that could have its channels first or last, such as (3, 4, 3), has them first, as in transformers.
    """
    array = source.detach().cpu().numpy() if hasattr(source, "detach") else source.__array__()
    if str(array.dtype) != "uint8":
        raise InputUnreadable(
            f"an array of {array.dtype} is not an image",
            "images are uint8 from 0 to 255; how other values map to them is not said",
            "scale it first: (array * 255).round().astype('uint8') for values from 0 to 1",
        )
    if array.ndim == 3 and array.shape[0] in _CHANNEL_COUNTS:
        array = array.transpose(1, 2, 0)  # (c, h, w) -> (h, w, c)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in _CHANNEL_COUNTS or not array.size:
        raise InputUnreadable(
            f"an array of shape {tuple(array.shape)} is not an image",
            "(h, w), (h, w, c) and (c, h, w) are, with c 1, 3 or 4",
            "give the images of a batch one by one",
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
