"""Packs and unpacks experts in other libraries' formats, without these libraries.

`nf4` as bitsandbytes stores it with nested scales (Dettmers et al., "QLoRA", 2023, arXiv 2305.14314); `qint4`
and `qint2` as optimum-quanto does, with float16 scales and shifts. One expert is one page: header, gate, up,
down, padded to 4096 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing.checksum import check_checksum, seal
from ernie_local.packing.layout import (
    ABSMAX_BLOCK,
    FOREIGN_MAGIC,
    HEADER_BYTES,
    ForeignFormat,
    ForeignLayout,
    read_foreign_layout,
)

Tensor = torch.Tensor
_HOST = torch.device("cpu")
# Quantiles of a normal distribution (QLoRA, appendix E), in the digits of bitsandbytes.
_NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, slots=True)
class ForeignMatrix:
    """floats: (numbers,) float32 for nf4, (2, groups) float16 for the others, scales first.

    scale_codes: (blocks,) uint8, empty but for nf4. codes: (code_bytes,) uint8, as the library packs them.
    """

    foreign: ForeignFormat
    shape: tuple[int, int]
    floats: Tensor
    scale_codes: Tensor
    codes: Tensor

    def __post_init__(self) -> None:
        """Raise UsageError for parts of another size, or numbers that are not finite."""
        foreign, shape = self.foreign, self.shape
        wanted = (foreign.float_bytes(*shape), foreign.scale_code_bytes(*shape), foreign.code_bytes(*shape))
        found = (self.floats.nbytes, self.scale_codes.nbytes, self.codes.nbytes)
        if found != wanted:
            raise UsageError(
                f"{found} bytes of floats, scales and codes, a {foreign.name} matrix of {shape} has {wanted}",
                "they are parts of one matrix",
                "pass what the library made of a matrix of this shape",
            )
        if not bool(self.floats.isfinite().all()):
            raise UsageError(
                f"{int((~self.floats.isfinite()).sum())} of {self.floats.numel()} scales are not finite",
                "each makes weights NaN",
                "check the weights that were quantized",
            )


def pack_foreign(matrix: ForeignMatrix) -> Tensor:
    """The bytes of docs/format.md, (matrix_bytes,) uint8."""
    packed = torch.zeros(matrix.foreign.matrix_bytes(*matrix.shape), dtype=torch.uint8)
    start = 0
    for part in (matrix.floats, matrix.scale_codes, matrix.codes):
        content = part.contiguous().flatten().view(torch.uint8)
        packed[start : start + content.numel()] = content
        start += content.numel()
    return packed


def read_floats(packed: Tensor, foreign: ForeignFormat, rows: int, columns: int) -> Tensor:
    """The floats that the bytes of a matrix begin with, (numbers,) float32 or float16."""
    content = packed[: foreign.float_bytes(rows, columns)]
    return content.view(torch.float32 if foreign.kind == "nf4" else torch.float16)


def dequantize_foreign(packed: Tensor, foreign: ForeignFormat, rows: int, columns: int) -> Tensor:
    """packed: (matrix_bytes,) uint8 -> (rows, columns) float32, computed in float32 as the library does."""
    floats = read_floats(packed, foreign, rows, columns)
    start = floats.nbytes + foreign.scale_code_bytes(rows, columns)
    codes = packed[start : start + foreign.code_bytes(rows, columns)]
    if foreign.kind == "nf4":
        weights = _dequantize_nf4(codes, packed[floats.nbytes : start], floats, foreign.group_size)
        return weights[: rows * columns].reshape(rows, columns)
    return _dequantize_quanto(codes, floats.float().view(2, -1, 1), foreign.bits).view(rows, columns)


def _dequantize_nf4(codes: Tensor, scale_codes: Tensor, floats: Tensor, block_size: int) -> Tensor:
    """A weight is level times scale; a scale is offset plus level times the scale of its block."""
    offset, scale_scales = floats[0], floats[1:].repeat_interleave(ABSMAX_BLOCK)[: len(scale_codes)]
    scales = absmax_levels(codes.device)[scale_codes.int()] * scale_scales + offset  # (blocks,)
    weights: Tensor = _nf4_pairs(codes.device)[codes.int()].flatten()  # two of each byte
    whole = len(weights) // block_size * block_size
    weights[:whole].view(-1, block_size).mul_(scales[: whole // block_size, None])
    weights[whole:].mul_(scales[-1])
    return weights


def _dequantize_quanto(codes: Tensor, floats: Tensor, bits: int) -> Tensor:
    """floats: scales and shifts, (2, groups, 1)."""
    scales, shifts = floats
    unpacked = unpack_quanto(codes.view(-(-len(scales) * bits // 8), -1), bits)
    weights: Tensor = unpacked[: len(scales)] * scales - shifts
    return weights


def unpack_quanto(packed: Tensor, bits: int) -> Tensor:
    """(rows, ...) uint8 -> (rows * codes a byte, ...) uint8: the lowest bits of all rows come first."""
    return torch.cat([(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)])


@functools.cache
def _nf4_pairs(device: torch.device = _HOST) -> Tensor:
    """(256, 2) float32: the levels that a byte of two codes means, high nibble first."""
    levels = torch.tensor(_NF4_LEVELS, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack((levels[byte >> 4], levels[byte & 15]), dim=-1)


@functools.cache
def absmax_levels(device: torch.device = _HOST) -> Tensor:
    """(256,) float32: the signed dynamic map (Dettmers, 2015, arXiv 1511.04561), in which scales are coded.

    Seven decades, each with twice the levels of the one below, at the middles of equal parts of 0.1 to 1.
    """
    positive: list[Tensor] = []
    for decade in range(7):
        ends = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32, device=_HOST)
        positive.append(10.0 ** (decade - 6) * ((ends[:-1] + ends[1:]) / 2))
    middles = torch.cat(positive)
    ends = torch.tensor([0.0, 1.0], device=_HOST)
    return torch.cat((-middles, middles, ends)).sort().values.to(device)


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
