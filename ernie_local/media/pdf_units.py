"""Finds how many points a unit of a PDF page is: PDFium takes it for one and has no function that tells."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

import pypdfium2
import pypdfium2.raw

_KEY = b"/UserUnit"
_COMPRESSED_OBJECTS = re.compile(rb"/ObjStm\b.{0,400}?\bstream\r?\n", re.DOTALL)
_MOST_INFLATED_BYTES = 16 << 20  # of one stream of objects, which hold some hundred kB
# As PDFium writes a page: keys in their order. The value may stand elsewhere.
_UNIT_OF_PAGE = re.compile(rb"/Type\s*/Page\s*/UserUnit\s+(?:(?P<elsewhere>\d+) 0 R|(?P<unit>[0-9.]+))")


def may_have_units(data: bytes) -> bool:
    """Whether pages of this PDF may have units of their own; looks into compressed objects too."""
    # Encrypted objects could only be looked into by PDFium.
    if _KEY in data or (b"/Encrypt" in data and b"/ObjStm" in data):
        return True
    return any(_KEY in objects for objects in _inflated_objects(data))


def unit_in_points(document: Any, number: int) -> float:
    """The unit of page `number`, from 1. The page loses its annotations: they may lead to all other pages."""
    page = document[number - 1]
    while pypdfium2.raw.FPDFPage_GetAnnotCount(page) > 0:
        if not pypdfium2.raw.FPDFPage_RemoveAnnot(page, 0):
            break
    page.close()
    # PDFium writes what it has read in plain words.
    copy, written = pypdfium2.PdfDocument.new(), io.BytesIO()
    copy.import_pages(document, [number - 1])
    copy.save(written)
    text = written.getvalue()
    found = _UNIT_OF_PAGE.search(text)
    if found is not None and found["elsewhere"]:
        found = re.search(rb"[\r\n]%s 0 obj\s+(?P<unit>[0-9.]+)" % found["elsewhere"], text)
    try:
        unit = float(found["unit"]) if found is not None else 1.0
    except ValueError:
        return 1.0
    return unit or 1.0


def _inflated_objects(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for match in _COMPRESSED_OBJECTS.finditer(data):
        end = data.find(b"endstream", match.end())
        try:
            yield zlib.decompressobj().decompress(
                view[match.end() : max(end, match.end())], _MOST_INFLATED_BYTES
            )
        except zlib.error:  # another filter, or damaged
            continue
