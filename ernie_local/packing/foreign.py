"""Packs and unpacks matrices in other libraries' formats, without these libraries.

`nf4` as bitsandbytes stores it with nested scales (Dettmers et al., "QLoRA", 2023, arXiv 2305.14314); `qint4`
and `qint2` as optimum-quanto does, with float16 scales and shifts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_local.errors import UsageError
from ernie_local.packing.layout import ABSMAX_BLOCK, ForeignFormat, ForeignLayout

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
        wanted = foreign.part_bytes(*shape)
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


def split_foreign(
    packed: Tensor, foreign: ForeignFormat, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The floats, (numbers,), scale codes and codes that the bytes of a matrix hold, as in ForeignMatrix."""
    sizes = foreign.part_bytes(rows, columns)
    floats, scale_codes, codes = packed[: sum(sizes)].split(sizes)
    return floats.view(torch.float32 if foreign.kind == "nf4" else torch.float16), scale_codes, codes


def dequantize_foreign(packed: Tensor, foreign: ForeignFormat, rows: int, columns: int) -> Tensor:
    """packed: (matrix_bytes,) uint8 -> (rows, columns) float32, computed in float32 as the library does."""
    floats, scale_codes, codes = split_foreign(packed, foreign, rows, columns)
    if foreign.kind == "nf4":
        weights = _dequantize_nf4(codes, scale_codes, floats, foreign.group_size)
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


def foreign_weight(
    packed: Tensor, layout: ForeignLayout, index: int, dequantize: Dequantize = dequantize_foreign
) -> Tensor:
    """gate, up or down (0, 1, 2) of a page, or of a slot that begins with one, (rows, columns) float32.

    dequantize: what unpacks it, plain torch by default.
    """
    start, stop = layout.offsets[index : index + 2]
    return dequantize(packed[start:stop], layout.foreign, *layout.shapes[index])
