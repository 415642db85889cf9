"""Holds the numbers of a quantized matrix, its packed bytes, and the weights that they mean.

Tiles of 16 rows hold metadata, then codes. Metadata: 16 fp16 row scales, then the groups, first to last. For
each group w4 has 16 scale bytes and 16 zero bytes; the 2-bit formats 16 bytes, scale in the low nibble, zero
in the high one; w3 16 bytes with the scale in the low six bits and the zero's low two bits above, then 8
bytes with the zero's high four bits, row 2i in the low nibble of byte i. w2t has 8 bytes of such nibbles, its
scales. w8 has no row scales, and 16 fp16 scales for each group.

Codes have their columns interleaved the way byte dot products want them. A 64-byte block holds, at byte `4 *
row + j`, columns of the residue `j` modulo 4: one code in w8, two in w4 (low nibble first), four in the 2-bit
formats (lowest bits first). w3 keeps its low two bits that way, and behind all of them its high bits: bit `4
* row + j` of a 64-bit little-endian word for every four columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing.formats import TILE_ROWS, TRELLIS_SCALES, TRELLIS_ZERO, LowBitFormat, check_shape
from ernie_local.packing.trellis import levels_of

W8_ZERO = 128


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Codes with their scales, one number a place.

    codes: (rows, columns) uint8; of w2t as packing/trellis.py says. scales: (rows, groups) uint8, in w8 fp16.
    zeros: (rows, groups) uint8, None in w8 and w2t. row_scales: (rows,) fp16, None in w8.
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
        fp16 = low_bit.has_fp16_scales
        scale_dtype = torch.float16 if fp16 else torch.uint8
        _check("codes", self.codes, (rows, columns), torch.uint8, low_bit.highest_code)
        _check("scales", self.scales, groups, scale_dtype, None if fp16 else low_bit.highest_scale)
        _check("zeros", self.zeros, groups if low_bit.has_zeros else None, torch.uint8, low_bit.highest_zero)
        _check("row_scales", self.row_scales, None if fp16 else (rows,), torch.float16, None)

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
                "w8 has no zeros and no row scales, w2t no zeros, the others have both",
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
    codes = (levels_of(matrix.codes) if low_bit.is_trellis else matrix.codes).float()
    scales = per_column(numbers_of_scales(matrix), low_bit, columns)
    zeros: Tensor | int = TRELLIS_ZERO if low_bit.is_trellis else W8_ZERO
    if matrix.zeros is not None:
        zeros = per_column(matrix.zeros.float(), low_bit, columns) / low_bit.zero_divisor
    if matrix.row_scales is not None:
        scales = scales * matrix.row_scales.float()[:, None]
    return ((codes - zeros) * scales).to(dtype)


def numbers_of_scales(matrix: QuantizedMatrix) -> Tensor:
    """What the stored scales mean, (rows, groups) float32, without the row's."""
    if not matrix.low_bit.is_trellis:
        return matrix.scales.float()
    numbers = torch.tensor(TRELLIS_SCALES, dtype=torch.float32, device=matrix.scales.device)
    return numbers[matrix.scales.long()]


def per_column(values: Tensor, low_bit: LowBitFormat, columns: int) -> Tensor:
    """One number a group, (rows, groups), to one a column, (rows, columns)."""
    return values.repeat_interleave(low_bit.group_size, dim=1)[:, :columns]


def pack_matrix(matrix: QuantizedMatrix) -> Tensor:
    """The bytes of docs/format.md, (matrix_bytes,) uint8."""
    low_bit, (rows, columns) = matrix.low_bit, matrix.shape
    tiles = low_bit.num_tiles(rows)
    # Rows that only fill the last tile mean zero: scale 0, and in w8 the middle code as well.
    codes = _tiled(matrix.codes, tiles, W8_ZERO if low_bit.has_fp16_scales else 0)
    metadata = _pack_metadata(matrix, tiles)
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
    row_scales, scales, zeros = _unpack_metadata(low_bit, tiles, low_bit.num_groups(columns))
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


def _pack_metadata(matrix: QuantizedMatrix, tiles: int) -> Tensor:
    """(tiles, metadata bytes) uint8, only up to the last group: the caller pads to `metadata_bytes`."""
    scales = _tiled(matrix.scales, tiles).transpose(1, 2)  # (tiles, groups, 16)
    if matrix.row_scales is None:
        return scales.contiguous().view(torch.uint8).flatten(1)
    row_scales = _tiled(matrix.row_scales, tiles).view(torch.uint8)  # (tiles, 32)
    if matrix.zeros is None:
        return torch.cat((row_scales, _pack_nibbles(scales).flatten(1)), dim=-1)
    zeros = _tiled(matrix.zeros, tiles).transpose(1, 2)
    if matrix.low_bit.scale_bits == 8:
        groups = torch.cat((scales, zeros), dim=-1)
    elif matrix.low_bit.scale_bits == 4:
        groups = scales | (zeros << 4)
    else:
        groups = torch.cat((scales | (zeros & 3) << 6, _pack_nibbles(zeros >> 2)), dim=-1)
    return torch.cat((row_scales, groups.flatten(1)), dim=-1)


def _unpack_metadata(
    low_bit: LowBitFormat, packed: Tensor, num_groups: int
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The inverse: row scales (tiles, 16), scales and zeros (tiles, groups, 16), or None."""
    start = low_bit.row_scale_bytes()
    per_group = TILE_ROWS * (low_bit.scale_bits + low_bit.zero_bits) // 8
    groups = packed[:, start : start + num_groups * per_group].unflatten(1, (num_groups, per_group))
    if low_bit.has_fp16_scales:
        return None, groups.contiguous().view(torch.float16), None
    row_scales = packed[:, :start].contiguous().view(torch.float16)
    if not low_bit.has_zeros:
        return row_scales, _unpack_nibbles(groups), None
    first = groups[..., :TILE_ROWS]
    if low_bit.scale_bits == 8:
        return row_scales, first, groups[..., TILE_ROWS:]
    if low_bit.scale_bits == 4:
        return row_scales, first & 15, first >> 4
    return row_scales, first & 63, (first >> 6) | (_unpack_nibbles(groups[..., TILE_ROWS:]) << 2)


def _pack_nibbles(values: Tensor) -> Tensor:
    """(tiles, groups, 16) -> (tiles, groups, 8)."""
    pairs = values.unflatten(-1, (TILE_ROWS // 2, 2))  # (tiles, groups, 8, 2)
    packed: Tensor = pairs[..., 0] | pairs[..., 1] << 4
    return packed


def _unpack_nibbles(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """codes: (tiles, 16, columns) uint8 -> (tiles, code bytes) uint8."""
    if bits == 3:
        low, high = pack_codes(codes & 3, 2), _pack_bit_plane(codes >> 2)
        return torch.cat((low, high), dim=-1)
    quads = _to_quads(codes)  # (tiles, columns / 4, 16 * 4)
    per_byte = 8 // bits
    planes = quads.unflatten(1, (-1, per_byte))  # (tiles, blocks, codes a byte, 64)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    packed: Tensor = (planes << shifts).sum(dim=2, dtype=torch.uint8).flatten(1)
    return packed


def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse: (tiles, code bytes) uint8 -> (tiles, 16, columns) uint8."""
    if bits == 3:
        split = TILE_ROWS * columns // 4
        low = unpack_codes(packed[:, :split], 2, columns)
        return low | (_unpack_bit_plane(packed[:, split:], columns) << 2)
    blocks = packed.unflatten(1, (-1, 1, 4 * TILE_ROWS))  # (tiles, blocks, 1, 64)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    planes = (blocks >> shifts) & ((1 << bits) - 1)  # (tiles, blocks, codes a byte, 64)
    return _from_quads(planes.flatten(1, 2))


def _pack_bit_plane(codes: Tensor) -> Tensor:
    """codes of 0 and 1, (tiles, 16, columns) -> (tiles, 2 * columns) uint8."""
    bits = _to_quads(codes).unflatten(-1, (8, 8))  # (tiles, columns / 4, bytes of a word, bits of a byte)
    packed: Tensor = (bits << torch.arange(8, dtype=torch.uint8)).sum(dim=-1, dtype=torch.uint8).flatten(1)
    return packed


def _unpack_bit_plane(packed: Tensor, columns: int) -> Tensor:
    words = packed.view(-1, columns // 4, 8, 1)  # (tiles, columns / 4, bytes of a word, 1)
    bits = (words >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return _from_quads(bits.flatten(2))


def _to_quads(codes: Tensor) -> Tensor:
    """(tiles, 16, columns) -> (tiles, columns / 4, 16 * 4): four columns of every row side by side."""
    quads: Tensor = codes.unflatten(-1, (-1, 4)).transpose(1, 2).flatten(2)
    return quads


def _from_quads(quads: Tensor) -> Tensor:
    codes: Tensor = quads.unflatten(-1, (TILE_ROWS, 4)).transpose(1, 2).flatten(2)
    return codes
