"""Renders pages of a PDF as RGB images, with pypdfium2 (imported when the first PDF is read)."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

from ernie_local.errors import InputUnreadable
from ernie_local.media.decode import check_size
from ernie_local.media.pages import Page, PageRequest, choose_pages

# 8-point print is 16 pixels high. An A4 page takes 2,772 tokens; 200 dpi would take 4,956.
DEFAULT_DPI = 150.0
_POINTS_PER_INCH = 72.0
# The most that a model can see. Larger pages, such as posters, are rendered at a lower resolution, with a
# note.
MAX_RENDERED_PIXELS = 28 * 28 * 16384

# PDFium keeps global state and must not be entered by two threads at once.
_PDFIUM_LOCK = threading.Lock()


def render_pdf(data: bytes, name: str, request: PageRequest | None, dpi: float = DEFAULT_DPI) -> list[Page]:
    """Render pages of a PDF on white, with filled form fields and annotations.

    InputUnreadable for damaged, encrypted and empty files, and for pages that are not there.
    """
    import pypdfium2

    with _PDFIUM_LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            raise _unreadable(error, len(data), name) from error
        try:
            # PDFium demands that this comes first.
            notes = _prepare_forms(document)
            pages = choose_pages(request, len(document), name)
            return [_render_page(document, number, name, dpi, notes) for number in pages]
        finally:
            document.close()


def _prepare_forms(document: Any) -> tuple[str, ...]:
    """Have filled form fields drawn too; returns notes about what cannot be drawn."""
    import pypdfium2
    import pypdfium2.raw

    # For an XFA form it logs how to rebuild pypdfium2; our note is enough for the user.
    logger = logging.getLogger("pypdfium2")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        document.init_forms()
    except pypdfium2.PdfiumError:
        return ("holds a form that could not be read, so filled fields may be missing",)
    finally:
        logger.setLevel(level)
    if document.get_formtype() in (pypdfium2.raw.FORMTYPE_XFA_FULL, pypdfium2.raw.FORMTYPE_XFA_FOREGROUND):
        return ("holds an XFA form, of which only the plain fields are drawn",)
    return ()


def _render_page(document: Any, number: int, name: str, dpi: float, notes: tuple[str, ...]) -> Page:
    import pypdfium2

    try:
        page = document[number - 1]
        width, height = page.get_size()
        scale = dpi / _POINTS_PER_INCH
        # The renderer rounds both sides up to whole pixels.
        excess = (width * scale + 1) * (height * scale + 1) / MAX_RENDERED_PIXELS
        if excess > 1:
            scale /= excess**0.5
            notes = (*notes, f"a large page, read at {scale * _POINTS_PER_INCH:.0f} instead of {dpi:.0f} dpi")
        check_size(math.ceil(width * scale), math.ceil(height * scale), f"{name}:{number}")
        bitmap = page.render(scale=scale, rev_byteorder=True)
        # Converting copies, so the image does not depend on the bitmap.
        image = bitmap.to_pil().convert("RGB")
        bitmap.close()
        page.close()
    except pypdfium2.PdfiumError as error:
        raise InputUnreadable(
            f"{name}: page {number} of {len(document)} cannot be drawn",
            f"the page is damaged: {error}",
            "open the PDF in a viewer and print it to a new PDF",
        ) from error
    return Page(number, len(document), image, notes)


def _unreadable(error: Any, num_bytes: int, name: str) -> InputUnreadable:
    import pypdfium2.raw

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
