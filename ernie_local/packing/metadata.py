"""Row scales, group scales and zeros of one matrix as bytes.

A tile begins with 16 fp16 row scales; then come the groups, first to last. For each: w4 has 16 scale bytes
and 16 zero bytes; the 2-bit formats 16 bytes, scale in the low nibble, zero in the high one; w3 16 bytes with
the scale in the low six bits and the zero's low two bits above, then 8 bytes with the zero's high four bits,
row 2i in the low nibble of byte i. w8 has no row scales, and 16 fp16 scales for each group.
"""

from __future__ import annotations

import torch

from ernie_local.packing.formats import TILE_ROWS, LowBitFormat

Tensor = torch.Tensor


def pack_metadata(low_bit: LowBitFormat, row_scales: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """row_scales: (tiles, 16) fp16; scales, zeros: (tiles, groups, 16) -> (tiles, metadata bytes) uint8.

    Only up to the last group: the caller pads to `metadata_bytes`.
    """
    if low_bit.is_symmetric:
        return scales.contiguous().view(torch.uint8).flatten(1)
    if low_bit.scale_bits == 8:
        groups = torch.cat((scales, zeros), dim=-1)
    elif low_bit.scale_bits == 4:
        groups = scales | (zeros << 4)
    else:
        high = (zeros >> 2).unflatten(-1, (TILE_ROWS // 2, 2))  # (tiles, groups, 8, 2)
        groups = torch.cat((scales | (zeros & 3) << 6, high[..., 0] | high[..., 1] << 4), dim=-1)
    return torch.cat((row_scales.contiguous().view(torch.uint8), groups.flatten(1)), dim=-1)


def unpack_metadata(
    low_bit: LowBitFormat, packed: Tensor, num_groups: int
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The inverse: row scales (tiles, 16), scales and zeros (tiles, groups, 16), or None."""
    start = low_bit.row_scale_bytes()
    per_group = TILE_ROWS * (low_bit.scale_bits + low_bit.zero_bits) // 8
    groups = packed[:, start : start + num_groups * per_group].unflatten(1, (num_groups, per_group))
    if low_bit.is_symmetric:
        return None, groups.contiguous().view(torch.float16), None
    row_scales = packed[:, :start].contiguous().view(torch.float16)
    first = groups[..., :TILE_ROWS]
    if low_bit.scale_bits == 8:
        return row_scales, first, groups[..., TILE_ROWS:]
    if low_bit.scale_bits == 4:
        return row_scales, first & 15, first >> 4
    nibbles = groups[..., TILE_ROWS:].unsqueeze(-1)  # (tiles, groups, 8, 1)
    high = torch.cat((nibbles & 15, nibbles >> 4), dim=-1).flatten(-2)  # (tiles, groups, 16)
    return row_scales, first & 63, (first >> 6) | (high << 2)
