"""Has PDFium draw the values of form fields, also of those that come without a drawing of their own."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import pypdfium2
import pypdfium2.raw

_MARKED_KINDS = (pypdfium2.raw.FPDF_FORMFIELD_CHECKBOX, pypdfium2.raw.FPDF_FORMFIELD_RADIOBUTTON)
_VALUED_KINDS = (
    pypdfium2.raw.FPDF_FORMFIELD_TEXTFIELD,
    pypdfium2.raw.FPDF_FORMFIELD_COMBOBOX,
    pypdfium2.raw.FPDF_FORMFIELD_LISTBOX,
)
_UNMARKED = ("", "Off")


def prepare_forms(document: Any) -> tuple[str, ...]:
    """Have form fields drawn; returns notes about what cannot be. To be called before any page is read."""
    # For an XFA form it logs how to rebuild pypdfium2; our note is enough for the user.
    logging.getLogger("pypdfium2").setLevel(logging.CRITICAL)
    try:
        document.init_forms()
    except pypdfium2.PdfiumError:
        return ("holds a form that could not be read, so filled fields may be missing",)
    if document.get_formtype() in (pypdfium2.raw.FORMTYPE_XFA_FULL, pypdfium2.raw.FORMTYPE_XFA_FOREGROUND):
        return ("holds an XFA form, of which only the plain fields are drawn",)
    return ()


def reset_empty_fields(document: Any, page: Any) -> bool:
    """Prepare fields with a value whose drawing is empty; True where the page must be reopened to draw them.

    PDFium draws a field that has no drawing, but not one whose drawing is empty; and of a box without a
    drawing, it knows the mark by the name "Yes" alone.
    """
    if not document.formenv:
        return False
    found = False
    for index in range(pypdfium2.raw.FPDFPage_GetAnnotCount(page)):
        annotation = pypdfium2.raw.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        kind = pypdfium2.raw.FPDFAnnot_GetFormFieldType(document.formenv, annotation)
        is_marked = kind in _MARKED_KINDS and _text_of(annotation, b"AS") not in _UNMARKED
        has_value = is_marked or (kind in _VALUED_KINDS and _text_of(annotation, b"V"))
        if has_value and not _decode(pypdfium2.raw.FPDFAnnot_GetAP, annotation, 0):
            pypdfium2.raw.FPDFAnnot_SetAP(annotation, pypdfium2.raw.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None)
            if is_marked:
                mark = ctypes.create_string_buffer("Yes\0".encode("utf-16-le"))
                pypdfium2.raw.FPDFAnnot_SetStringValue(annotation, b"AS", _as_wide(mark))
            found = True
        pypdfium2.raw.FPDFPage_CloseAnnot(annotation)
    return found


def _text_of(annotation: Any, key: bytes) -> str:
    return _decode(pypdfium2.raw.FPDFAnnot_GetStringValue, annotation, key)


def _decode(get: Any, *arguments: Any) -> str:
    """The text that a function of PDFium gives, which asks for the size of its buffer first."""
    num_bytes = get(*arguments, None, 0)
    buffer = ctypes.create_string_buffer(num_bytes)
    get(*arguments, _as_wide(buffer), num_bytes)
    return buffer.raw.decode("utf-16-le", errors="replace").rstrip("\0")


def _as_wide(buffer: Any) -> Any:
    return ctypes.cast(buffer, ctypes.POINTER(pypdfium2.raw.FPDF_WCHAR))
