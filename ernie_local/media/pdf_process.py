"""Draws pages of a PDF with pypdfium2, in a process of its own: a small file can ask for hours of drawing.

The process reads its job, a line of JSON, and the PDF from stdin. For each page it writes a line of JSON,
then RGB bytes. An error ends the output with a line of its three parts. The system ends a process that takes
too much time or memory.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import pypdfium2
import pypdfium2.raw

from ernie_local.errors import InputUnreadable, parameter
from ernie_local.media.decode import check_size
from ernie_local.media.image_size import MOST_VISIBLE_PIXELS
from ernie_local.media.image_view import whole_pixels
from ernie_local.media.pages import POINTS_PER_INCH, PageRequest, choose_pages
from ernie_local.media.pdf_forms import prepare_forms, reset_empty_fields
from ernie_local.media.pdf_units import may_have_units, unit_in_points


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
    document = _open_document(data, name, job["password"])
    notes = prepare_forms(document)
    # A second copy, from which pages are taken apart.
    spare = _open_document(data, name, job["password"]) if may_have_units(data) else None
    request = None if job["pages"] is None else PageRequest(*job["pages"])
    for number in choose_pages(request, len(document), name):
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)
        drawn, image = _draw_page(document, spare, number, name, job)
        drawn["notes"] = (*notes, *drawn["notes"])
        yield drawn, image.tobytes()


def _open_document(data: bytes, name: str, password: str | None) -> Any:
    # First without the password: it may be that of another file, and one that needs none would not open.
    for given in dict.fromkeys((None, password or None)):
        try:
            # What is not UTF-8 on a command line is no password; PDFium is asked all the same.
            return pypdfium2.PdfDocument(data, given and given.encode(errors="replace").decode())
        except pypdfium2.PdfiumError as error:
            failure = error
            if error.err_code != pypdfium2.raw.FPDF_ERR_PASSWORD:
                break
    raise _unreadable(failure, len(data), name, has_password=bool(password)) from failure


def _draw_page(
    document: Any, spare: Any | None, number: int, name: str, job: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """A page on white, with filled form fields and annotations: what is told of it, and its RGB image.

    spare: the same document once more, where its pages may have units of their own.
    """
    notes: tuple[str, ...] = ()
    dpi = job["dpi"]
    try:
        page = document[number - 1]
        if reset_empty_fields(document, page):
            page.close()
            page = document[number - 1]
        width, height = page.get_size()
        if not width or not height:
            page.set_cropbox(*page.get_mediabox())
            page.close()
            page = document[number - 1]
            width, height = page.get_size()
            notes = ("its crop box lies outside of the page, so the whole page is drawn",)
        unit = 1.0 if spare is None else unit_in_points(spare, number)
        width, height = width * unit, height * unit
        scale = dpi / POINTS_PER_INCH
        part = job["part"] or (0.0, 0.0, width, height)
        # The renderer rounds both sides up to whole pixels.
        excess = ((part[2] - part[0]) * scale + 1) * ((part[3] - part[1]) * scale + 1) / MOST_VISIBLE_PIXELS
        if excess > 1:
            scale /= excess**0.5
            notes += (f"a large page, read at {scale * POINTS_PER_INCH:.3g} instead of {dpi:.3g} dpi",)
        factor = scale * unit  # pixels for one of the page's own units
        whole = (math.ceil(page.get_width() * factor), math.ceil(page.get_height() * factor))
        left, top, right, bottom = (0, 0, *whole)
        if job["part"] is not None:
            left, top, right, bottom = whole_pixels(tuple(side * scale for side in part), whole)
        check_size(right - left, bottom - top, f"{name}:{number}")
        # What is cut is given in units too, and rounded up to pixels.
        cut = (left, whole[1] - bottom, whole[0] - right, top)
        crop = tuple(max(0.0, side - 0.5) / factor for side in cut)
        image = page.render(scale=factor, crop=crop, rev_byteorder=True).to_pil().convert("RGB")
        drawn = {"num_pages": len(document), "size": image.size, "points": (width, height), "notes": notes}
        return {**drawn, "place": (*whole, left, top)}, image
    except pypdfium2.PdfiumError as error:
        raise InputUnreadable(
            f"{name}: page {number} of {len(document)} cannot be drawn",
            f"the page is damaged: {error}",
            "open the PDF in a viewer and print it to a new PDF",
        ) from error


def _unreadable(error: Any, num_bytes: int, name: str, *, has_password: bool) -> InputUnreadable:
    what = f"{name}: this PDF is cut off or damaged; {num_bytes:,} bytes were read"
    why = f"the reader says: {error}"
    hint = "download or copy it again, or open it in a viewer and print it to a new PDF"
    if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
        what, why = f"{name}: this PDF is encrypted", "it opens with a password only, and none was given"
        if has_password:
            what += ", and the password does not open it"
            why = "it was tried as the user's and as the owner's; capital and small letters differ"
        hint = f"{parameter('password', 'PASSWORD')}; where that cannot be given, take the password off: "
        hint += "qpdf --decrypt --password=PASSWORD in.pdf out.pdf"
    elif error.err_code == pypdfium2.raw.FPDF_ERR_SECURITY:
        what = f"{name}: this PDF is encrypted in a way that PDFium does not know"
        hint = "open it in the program it was made for and print it to a new PDF"
    return InputUnreadable(what, why, hint)


if __name__ == "__main__":
    main()
