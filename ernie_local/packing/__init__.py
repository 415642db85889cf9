"""The low-bit formats: what every bit of a packed matrix and of an expert page means.

Plain torch and slow on purpose: kernels are held to this package, and docs/format.md tells it in words. Knows
nothing of files, of kernels, or of how codes are chosen. Sizes and layouts need no torch; what holds numbers
is imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_local.packing.formats import FORMATS, TILE_ROWS, LowBitFormat, find_format
from ernie_local.packing.layout import PAGE_ALIGNMENT, PageLayout

if TYPE_CHECKING:
    from ernie_local.packing.matrix import QuantizedMatrix, dequantize, pack_matrix, unpack_matrix
    from ernie_local.packing.page import ExpertPage, pack_page, unpack_page

__all__ = [
    "FORMATS",
    "PAGE_ALIGNMENT",
    "TILE_ROWS",
    "ExpertPage",
    "LowBitFormat",
    "PageLayout",
    "QuantizedMatrix",
    "dequantize",
    "find_format",
    "pack_matrix",
    "pack_page",
    "unpack_matrix",
    "unpack_page",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ernie_local.packing import matrix, page

    return getattr(page, name, None) or getattr(matrix, name)
