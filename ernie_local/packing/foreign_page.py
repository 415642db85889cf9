"""One expert in another library's format as one page: header, gate, up, down, padded to 4096 bytes.

The sibling of expert_page.py; where the parts lie is foreign_formats.py's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ernie_local.errors import ModelUnusable
from ernie_local.packing.foreign_formats import (
    FOREIGN_MAGIC,
    ForeignFormat,
    ForeignLayout,
    read_foreign_layout,
)
from ernie_local.packing.foreign_matrix import ForeignMatrix, dequantize_foreign, pack_foreign, read_floats
from ernie_local.packing.page_checksum import check_checksum, seal
from ernie_local.packing.page_layout import HEADER_BYTES

Tensor = torch.Tensor
# Of a matrix: its bytes, format, rows and columns, to (rows, columns) float32.
Dequantize = Callable[[Tensor, ForeignFormat, int, int], Tensor]


def is_foreign_page(packed: Tensor) -> bool:
    """Whether these bytes, a page or a slot with one, begin like a page of another library's format."""
    return packed[: len(FOREIGN_MAGIC)].tolist() == list(FOREIGN_MAGIC)


def pack_foreign_page(gate: ForeignMatrix, up: ForeignMatrix, down: ForeignMatrix) -> Tensor:
    """(page_bytes,) uint8, with its checksum.

    gate, up: (inner, hidden); down: (hidden, inner); all of one format.
    """
    inner_size, hidden_size = gate.shape
    layout = ForeignLayout(gate.foreign, hidden_size, inner_size)
    matrices = (gate, up, down)
    assert all(matrix.foreign == gate.foreign for matrix in matrices)
    assert tuple(matrix.shape for matrix in matrices) == layout.shapes
    packed = torch.zeros(layout.page_bytes, dtype=torch.uint8)
    packed[:HEADER_BYTES] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
    for matrix, start, stop in zip(matrices, layout.offsets, layout.offsets[1:], strict=False):
        packed[start:stop] = pack_foreign(matrix)
    seal(packed)
    return packed


def read_foreign_page(packed: Tensor, where: str = "the page", allow_padding: bool = False) -> ForeignLayout:
    """The layout that a page's header names. Raises ModelUnusable for a page that is damaged or cut."""
    header = packed[:HEADER_BYTES].cpu().numpy().tobytes()
    if packed.dtype != torch.uint8 or packed.ndim != 1 or len(header) < HEADER_BYTES:
        raise _damaged(f"{where} is {packed.dtype} of shape {tuple(packed.shape)}, wanted bytes")
    layout = read_foreign_layout(header, where)
    spare = packed.numel() - layout.page_bytes
    if spare < 0 or (spare and not allow_padding):
        raise _damaged(f"{where} has {packed.numel()} bytes, its header means {layout.page_bytes}")
    return layout


def check_foreign_page(packed: Tensor, wanted: ForeignLayout, where: str) -> None:
    """Raise ModelUnusable unless the page is whole, of the layout `wanted`, and its scales are finite."""
    found = read_foreign_page(packed, where)
    check_checksum(packed, where)
    if found != wanted:
        raise _damaged(f"{where} holds {found}, wanted {wanted}")
    for start, shape in zip(wanted.offsets, wanted.shapes, strict=False):
        finite = read_floats(packed[start:], wanted.foreign, *shape).isfinite()
        if not bool(finite.all()):
            raise _damaged(
                f"{where}: {int((~finite).sum())} of {finite.numel()} scales are not finite numbers"
            )


def foreign_weight(
    packed: Tensor, layout: ForeignLayout, index: int, dequantize: Dequantize = dequantize_foreign
) -> Tensor:
    """gate, up or down (0, 1, 2) of a page, or of a slot that begins with one, (rows, columns) float32.

    dequantize: what unpacks it, plain torch by default.
    """
    start, stop = layout.offsets[index : index + 2]
    return dequantize(packed[start:stop], layout.foreign, *layout.shapes[index])


def _damaged(what: str) -> ModelUnusable:
    return ModelUnusable(what, "the page is damaged or of another version", "verify the checkpoint")
