"""The values in one weight file: finite numbers, pages as they were written, scales that are numbers.

Whether the tensors are those of the model is checkpoint/index.py's.
"""

from __future__ import annotations

from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.names import is_training_counter
from ernie_local.checkpoint.packed import PackedTensors, known_format
from ernie_local.checkpoint.reader import DTYPES, check_finite
from ernie_local.packing import PageLayout
from ernie_local.packing.layout import ForeignLayout
from ernie_local.packing.page import check_page, check_scales
from ernie_local.verify.finding import Findings
from ernie_local.verify.stream import FileStream


def check_values(
    stream: FileStream, tensors: list[StoredTensor], packed: PackedTensors, findings: Findings
) -> int:
    """Read the tensors of one file, in any order given; how many pages were looked at.

    Of each matrix, page or plain tensor the first fault is entered.
    """
    num_pages = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        stream.skip_to(tensor.offset)
        if is_training_counter(tensor.name):
            continue
        if packed.shapes.get(tensor.name) == tensor.shape and tensor.dtype == "U8":
            layout = packed.layout_of(tensor.name)
            if layout is None:
                _check_matrix(stream, tensor, packed, findings)
                continue
            for page in range(tensor.shape[0]):
                _check_page(stream, tensor, page, layout, findings)
            num_pages += tensor.shape[0]
        elif tensor.dtype in DTYPES:
            _check_plain(stream, tensor, findings)
    return num_pages


def _check_plain(stream: FileStream, tensor: StoredTensor, findings: Findings) -> None:
    dtype = DTYPES[tensor.dtype]
    with findings.catch(tensor.path.name, tensor.name):
        start = 0
        for piece in stream.pieces(tensor.num_bytes, dtype.itemsize):
            values = piece.view(dtype)
            check_finite(tensor, start, values)
            start += values.numel()


def _check_matrix(
    stream: FileStream, tensor: StoredTensor, packed: PackedTensors, findings: Findings
) -> None:
    name, _, format_name = tensor.name.rpartition(".")
    low_bit = known_format(format_name)
    _, columns = packed.matrix_shape(name)
    with findings.catch(tensor.path.name, tensor.name):
        for piece in stream.pieces(tensor.num_bytes, low_bit.tile_bytes(columns)):
            check_scales(piece, low_bit, columns, f"{tensor.path}: {tensor.name}")


def _check_page(
    stream: FileStream,
    tensor: StoredTensor,
    page: int,
    layout: PageLayout | ForeignLayout,
    findings: Findings,
) -> None:
    (whole,) = stream.pieces(layout.page_bytes, layout.page_bytes)
    with findings.catch(tensor.path.name, tensor.name, page):
        check_page(whole, layout, f"{tensor.path}: page {page} of {tensor.name}")
