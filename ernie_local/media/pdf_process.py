"""Draws pages of a PDF with pypdfium2, in a process of its own: a small file can ask for hours of drawing.

The process reads its job, a line of JSON, and the PDF from stdin. For each page it writes a line of JSON,
then RGB bytes. An error ends the output with a line of its three parts. The system ends a process that takes
too much time or memory.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import pypdfium2
import pypdfium2.raw

from ernie_local.errors import InputUnreadable
from ernie_local.media.decode import check_size
from ernie_local.media.image_size import MOST_VISIBLE_PIXELS
from ernie_local.media.pages import PageRequest, choose_pages

_POINTS_PER_INCH = 72.0


def main() -> None:
    """Do the job on stdin."""
    job = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, job["memory_bytes"])
    try:
        for drawn, pixels in _draw_pages(data, job):
            _write(drawn, pixels)
    except InputUnreadable as error:
        _write({"error": error.args})


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _write(value: dict[str, object], pixels: bytes = b"") -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n" + pixels)
    sys.stdout.buffer.flush()


def _draw_pages(data: bytes, job: dict[str, Any]) -> Iterator[tuple[dict[str, object], bytes]]:
    name, seconds = job["name"], job["page_seconds"]
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise _unreadable(error, len(data), name) from error
    # PDFium demands that this comes before any page.
    notes = _prepare_forms(document)
    request = None if job["pages"] is None else PageRequest(*job["pages"])
    for number in choose_pages(request, len(document), name):
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)
        image, page_notes = _draw_page(document, number, name, job["dpi"])
        drawn = {"num_pages": len(document), "size": image.size, "notes": (*notes, *page_notes)}
        yield drawn, image.tobytes()


def _prepare_forms(document: Any) -> tuple[str, ...]:
    """Have filled form fields drawn too; returns notes about what cannot be drawn."""
    # For an XFA form it logs how to rebuild pypdfium2; our note is enough for the user.
    logging.getLogger("pypdfium2").setLevel(logging.CRITICAL)
    try:
        document.init_forms()
    except pypdfium2.PdfiumError:
        return ("holds a form that could not be read, so filled fields may be missing",)
    if document.get_formtype() in (pypdfium2.raw.FORMTYPE_XFA_FULL, pypdfium2.raw.FORMTYPE_XFA_FOREGROUND):
        return ("holds an XFA form, of which only the plain fields are drawn",)
    return ()


def _draw_page(document: Any, number: int, name: str, dpi: float) -> tuple[Any, tuple[str, ...]]:
    """An RGB image of a page on white, with filled form fields and annotations; and notes for the user."""
    notes: tuple[str, ...] = ()
    try:
        page = document[number - 1]
        width, height = page.get_size()
        if not width or not height:
            page.set_cropbox(*page.get_mediabox())
            page.close()
            page = document[number - 1]
            width, height = page.get_size()
            notes = ("its crop box lies outside of the page, so the whole page is drawn",)
        scale = dpi / _POINTS_PER_INCH
        # The renderer rounds both sides up to whole pixels.
        excess = (width * scale + 1) * (height * scale + 1) / MOST_VISIBLE_PIXELS
        if excess > 1:
            scale /= excess**0.5
            notes += (f"a large page, read at {scale * _POINTS_PER_INCH:.0f} instead of {dpi:.0f} dpi",)
        check_size(math.ceil(width * scale), math.ceil(height * scale), f"{name}:{number}")
        return page.render(scale=scale, rev_byteorder=True).to_pil().convert("RGB"), notes
    except pypdfium2.PdfiumError as error:
        raise InputUnreadable(
            f"{name}: page {number} of {len(document)} cannot be drawn",
            f"the page is damaged: {error}",
            "open the PDF in a viewer and print it to a new PDF",
        ) from error


def _unreadable(error: Any, num_bytes: int, name: str) -> InputUnreadable:
    what = f"{name}: this PDF is cut off or damaged; {num_bytes:,} bytes were read"
    why = f"the reader says: {error}"
    hint = "download or copy it again, or open it in a viewer and print it to a new PDF"
    if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
        what, why = f"{name}: this PDF is encrypted", "it opens with a password only"
        hint = "take the password off first: qpdf --decrypt --password=PASSWORD in.pdf out.pdf"
    elif error.err_code == pypdfium2.raw.FPDF_ERR_SECURITY:
        what = f"{name}: this PDF is encrypted in a way that PDFium does not know"
        hint = "open it in the program it was made for and print it to a new PDF"
    return InputUnreadable(what, why, hint)


if __name__ == "__main__":
    main()
