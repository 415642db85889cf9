"""One quantized matrix: its numbers, its packed bytes, and the weights that they mean.

Knows nothing of how codes are chosen, nor of what the matrix is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing.codes import pack_codes, unpack_codes
from ernie_local.packing.formats import TILE_ROWS, LowBitFormat, check_shape
from ernie_local.packing.metadata import pack_metadata, unpack_metadata

Tensor = torch.Tensor
SYMMETRIC_ZERO = 128


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Codes with their scales, one number a place.

    codes: (rows, columns) uint8. scales: (rows, groups), uint8, or fp16 in a symmetric format. zeros: (rows,
    groups) uint8 and row_scales: (rows,) fp16, both None in a symmetric format.
    """

    low_bit: LowBitFormat
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    row_scales: Tensor | None

    def __post_init__(self) -> None:
        """Raise UsageError for a shape, dtype or value that the format cannot hold."""
        rows, columns = self.codes.shape
        check_shape(rows, columns)
        low_bit = self.low_bit
        groups = (rows, low_bit.num_groups(columns))
        symmetric = low_bit.is_symmetric
        scale_dtype = torch.float16 if symmetric else torch.uint8
        _check("codes", self.codes, (rows, columns), torch.uint8, low_bit.highest_code)
        _check("scales", self.scales, groups, scale_dtype, None if symmetric else low_bit.highest_scale)
        _check("zeros", self.zeros, None if symmetric else groups, torch.uint8, low_bit.highest_zero)
        _check("row_scales", self.row_scales, None if symmetric else (rows,), torch.float16, None)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.codes.shape[0], self.codes.shape[1]


def _check(
    name: str, tensor: Tensor | None, shape: tuple[int, ...] | None, dtype: torch.dtype, highest: int | None
) -> None:
    if tensor is None or shape is None:
        if (tensor is None) != (shape is None):
            raise UsageError(
                f"{name} given: {tensor is not None}, wanted: {shape is not None}",
                "symmetric formats have no zeros and no row scales, the others have both",
                "use the format that the numbers were made for",
            )
        return
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise UsageError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, wanted {dtype} {shape}",
            "codes, scales and zeros of one matrix belong together",
            "use the format that the numbers were made for",
        )
    if highest is not None and int(tensor.max()) > highest:
        raise UsageError(
            f"{name} go up to {int(tensor.max())}, the format holds 0 to {highest}",
            "higher ones would be cut off",
            "use the format that the numbers were made for",
        )
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise UsageError(
            f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} {name} are not finite",
            "one of them makes every output of its row NaN",
            "check the weights that were quantized",
        )


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights, (rows, columns), computed in float32, then cast; formats.py has the formula."""
    low_bit, (_, columns) = matrix.low_bit, matrix.shape
    codes = matrix.codes.float()
    scales = per_column(matrix.scales.float(), low_bit, columns)
    if matrix.zeros is None or matrix.row_scales is None:
        return ((codes - SYMMETRIC_ZERO) * scales).to(dtype)
    zeros = per_column(matrix.zeros.float(), low_bit, columns) / low_bit.zero_divisor
    return ((codes - zeros) * (scales * matrix.row_scales.float()[:, None])).to(dtype)


def per_column(values: Tensor, low_bit: LowBitFormat, columns: int) -> Tensor:
    """One number a group, (rows, groups), to one a column, (rows, columns)."""
    return values.repeat_interleave(low_bit.group_size, dim=1)[:, :columns]


def pack_matrix(matrix: QuantizedMatrix) -> Tensor:
    """The bytes of docs/format.md, (matrix_bytes,) uint8."""
    low_bit, (rows, columns) = matrix.low_bit, matrix.shape
    tiles = low_bit.num_tiles(rows)
    # Rows that only fill the last tile mean zero: scale 0, and in w8 the middle code as well.
    codes = _tiled(matrix.codes, tiles, SYMMETRIC_ZERO if low_bit.is_symmetric else 0)
    scales = _tiled(matrix.scales, tiles).transpose(1, 2)  # (tiles, groups, 16)
    zeros, row_scales = matrix.zeros, matrix.row_scales
    metadata = pack_metadata(
        low_bit,
        torch.empty(0) if row_scales is None else _tiled(row_scales, tiles),
        scales,
        torch.empty(0) if zeros is None else _tiled(zeros, tiles).transpose(1, 2),
    )
    packed = torch.zeros(tiles, low_bit.tile_bytes(columns), dtype=torch.uint8)
    packed[:, : metadata.shape[1]] = metadata
    start = low_bit.metadata_bytes(columns)
    packed[:, start : start + low_bit.code_bytes(columns)] = pack_codes(codes, low_bit.bits)
    return packed.flatten()


def unpack_matrix(packed: Tensor, low_bit: LowBitFormat, rows: int, columns: int) -> QuantizedMatrix:
    """The inverse of `pack_matrix`. Raises ModelUnusable if the bytes are not as many as the shape needs."""
    expected = low_bit.matrix_bytes(rows, columns)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        raise ModelUnusable(
            f"{packed.numel()} values of {packed.dtype} for a {low_bit.name} matrix of {rows} x {columns}, "
            f"wanted {expected} bytes",
            "packed bytes and shape do not belong together",
            "verify the checkpoint",
        )
    tiles = packed.view(low_bit.num_tiles(rows), low_bit.tile_bytes(columns))
    start = low_bit.metadata_bytes(columns)
    codes = unpack_codes(tiles[:, start : start + low_bit.code_bytes(columns)], low_bit.bits, columns)
    row_scales, scales, zeros = unpack_metadata(low_bit, tiles, low_bit.num_groups(columns))
    return QuantizedMatrix(
        low_bit,
        codes.flatten(0, 1)[:rows],
        _untiled(scales, rows),
        None if zeros is None else _untiled(zeros, rows),
        None if row_scales is None else row_scales.flatten()[:rows],
    )


def _tiled(values: Tensor, tiles: int, filling: int = 0) -> Tensor:
    """(rows, ...) -> (tiles, 16, ...), filled up at the end."""
    padded = values.new_full((tiles * TILE_ROWS, *values.shape[1:]), filling)
    padded[: values.shape[0]] = values
    tiled: Tensor = padded.unflatten(0, (tiles, TILE_ROWS))
    return tiled


def _untiled(values: Tensor, rows: int) -> Tensor:
    """(tiles, groups, 16) -> (rows, groups)."""
    return values.transpose(1, 2).flatten(0, 1)[:rows]
