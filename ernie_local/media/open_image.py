"""Opens anything that a user calls an image: path, pages of a document, bytes, standard input, array.

The result are RGB images. An image that cannot be read is refused here, before a model is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from PIL import Image

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media.decode import decode_pages, to_upright_rgb
from ernie_local.media.formats import SNIFFED_BYTES, sniff_format
from ernie_local.media.given_file import is_there, open_given, reporting_unreadable
from ernie_local.media.image_view import CropBox, ImageView, ViewBox
from ernie_local.media.pages import POINTS_PER_INCH, PageRequest, split_page_request
from ernie_local.media.pdf import DEFAULT_DPI, render_pdf

if TYPE_CHECKING:
    import numpy as np
    import torch

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any] | torch.Tensor"

STDIN_MARK = "-"
MAX_FILE_BYTES = 512 << 20
PART_DPI = 600.0  # letters of 4 points, the smallest that are printed, are 33 pixels high
_READ_BYTES = 1 << 20
_CHANNEL_COUNTS = (1, 3, 4)


@dataclass(frozen=True, slots=True, eq=False)
class OpenedImage:
    """An image ready for the image processor.

    image: mode RGB, upright, without transparency. name: for the user; of a file, the text that opens it
    again ("invoice.pdf:2"). view: where it lies in the original. notes: what was left out or changed, for the
    user. password: opens it again. num_pages: of the file that it is a page of.
    """

    image: Image.Image
    name: str
    view: ImageView
    notes: tuple[str, ...] = ()
    password: str | None = field(default=None, repr=False)
    num_pages: int = 1

    def cropped(self, box: CropBox) -> OpenedImage:
        """A part of it; ValueError for a box that does not lie in it."""
        view = self.view.cropped(box)
        return replace(self, image=self.image.crop(box), view=view)


def open_images(
    source: ImageSource,
    *,
    pages: PageRequest | None = None,
    stdin: BinaryIO | None = None,
    pdf_dpi: float = DEFAULT_DPI,
    password: str | None = None,
    shows_content: bool = True,
) -> list[OpenedImage]:
    """Open and decode PNG, JPEG, WebP, GIF, TIFF, BMP and PDF images, whatever the file is called.

    source: a path; a path with pages ("invoice.pdf:2", "scan.tif:1-3") unless a file has exactly that name;
    "-" or "-:1-3" for the bytes of `stdin`; bytes; a PIL image (its current frame); or a uint8 array or
    tensor of shape (h, w), (h, w, c) or (c, h, w), c 1, 3 (RGB) or 4 (RGBA). A PDF or TIFF gives one image
    for each page; without chosen pages it is refused above MAX_PAGES. Of a moving GIF, WebP or PNG the first
    frame is read. pages: these of the file of exactly that path. PDF pages are drawn at `pdf_dpi`. password:
    of encrypted PDFs; no message shows it. shows_content: a refusal may quote what a file holds.

    InputUnreadable for what cannot be read, and for paths of pipes, devices and folders; the kind and size of
    a file are checked before it is read whole, and the size of an image before it is decoded.
    """
    if isinstance(source, Image.Image):
        return [_open_object(source)]
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        kind = sniff_format(data, "image", len(data), shows_content=shows_content)
        return _open_bytes(data, kind, "image", None, pdf_dpi, password)
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        is_whole = pages is not None or (text != STDIN_MARK and is_there(text))
        path_text, request = (text, pages) if is_whole else split_page_request(text)
        if path_text == STDIN_MARK:
            name = "standard input"
            data, kind = _read_stdin(stdin, name)
        else:
            name = path_text
            data, kind = _read_file(path_text, shows_content)
        return _open_bytes(data, kind, name, request, pdf_dpi, password)
    if hasattr(source, "__array__"):
        return [_open_object(_array_to_image(source))]
    raise InputUnreadable(
        f"a {type(source).__name__} is not an image",
        "paths, bytes, PIL images, NumPy arrays and torch tensors are",
        "give a path, or several images one by one",
    )


def open_part(path: str, part: ViewBox, max_pixels: int, password: str | None = None) -> OpenedImage:
    """A part of the image or page in a file, in full: nothing is reduced before it is cut.

    path: as of `open_images`, with one page. part: (left, top, right, bottom) in the original, as of
    `ImageView.to_original`; all pixels that it touches are taken. A page of a PDF is drawn anew, so that the
    part gets `max_pixels`, up to PART_DPI. InputUnreadable as by `open_images`.
    """
    path_text, request = (path, None) if is_there(path) else split_page_request(path)
    data, kind = _read_file(path_text, shows_content=False)
    if kind == "PDF":
        square_inches = (part[2] - part[0]) * (part[3] - part[1]) / POINTS_PER_INCH**2
        dpi = min(PART_DPI, (max_pixels / square_inches) ** 0.5)
        (page,) = render_pdf(data, path_text, request or PageRequest(1, 1), dpi, password, part)
    else:
        (page,) = decode_pages(data, kind, path_text, request or PageRequest(1, 1), part)
    return OpenedImage(page.image, path, page.view, page.notes, password, page.num_pages)


def _open_object(source: Image.Image) -> OpenedImage:
    image, view, notes = to_upright_rgb(source, "image")
    return OpenedImage(image, "image", view, notes)


def _open_bytes(
    data: bytes, kind: str, name: str, request: PageRequest | None, pdf_dpi: float, password: str | None
) -> list[OpenedImage]:
    if kind == "PDF":
        pages = render_pdf(data, name, request, pdf_dpi, password)
    else:
        pages = decode_pages(data, kind, name, request)
    return [
        OpenedImage(
            page.image,
            name if page.num_pages == 1 else f"{name}:{page.number}",
            page.view,
            page.notes,
            password,
            page.num_pages,
        )
        for page in pages
    ]


def _read_stdin(stdin: BinaryIO | None, name: str) -> tuple[bytes, str]:
    """All bytes of a stream, and their format. It is read in pieces, as no pipe says how long it is."""
    if stdin is None:
        raise UsageError(
            f"{STDIN_MARK!r} stands for standard input, which is not available here",
            "only the commands have a standard input to read an image from",
            "give the path, or the bytes themselves",
        )
    data = bytearray(stdin.read(_READ_BYTES))
    kind = sniff_format(bytes(data), name, len(data) if len(data) < _READ_BYTES else None)
    while piece := stdin.read(_READ_BYTES):
        data += piece
        if len(data) > MAX_FILE_BYTES:
            raise _too_long(name, f"{len(data):,} bytes or more")
    return bytes(data), kind


def _read_file(path_text: str, shows_content: bool) -> tuple[bytes, str]:
    """All bytes of a file, and their format."""
    with reporting_unreadable(path_text, "an image"), open_given(path_text, "an image") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        head = file.read(SNIFFED_BYTES) or b""
        kind = sniff_format(head, path_text, max(num_bytes, len(head)), shows_content=shows_content)
        if num_bytes > MAX_FILE_BYTES:
            raise _too_long(path_text, f"{num_bytes:,} bytes")
        # A file of /proc tells a size of 0.
        return head + (file.read(num_bytes or _READ_BYTES) or b""), kind


def _too_long(name: str, size: str) -> InputUnreadable:
    return InputUnreadable(
        f"{name}: {size}, at most {MAX_FILE_BYTES:,} are read",
        "the whole file is held in memory while it is decoded",
        "cut out the pages or the part that matter",
    )


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
