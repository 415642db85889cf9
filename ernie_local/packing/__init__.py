"""The low-bit formats: what every bit of a packed matrix and of an expert page means.

Plain torch and slow on purpose: kernels are held to this package, and docs/format.md tells it in words. Knows
nothing of files, of kernels, or of how codes are chosen.
"""

from ernie_local.packing.expert_page import ExpertPage, PageLayout, pack_page, unpack_page
from ernie_local.packing.formats import FORMATS, TILE_ROWS, LowBitFormat, find_format
from ernie_local.packing.matrix import QuantizedMatrix, dequantize, pack_matrix, unpack_matrix

__all__ = [
    "FORMATS",
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
