"""Codes of one matrix as bytes: tiles of 16 rows, columns interleaved the way byte dot products want them.

A 64-byte block holds, at byte `4 * row + j`, columns of the residue `j` modulo 4: one code in w8, two in w4
(low nibble first), four in the 2-bit formats (lowest bits first). w3 keeps its low two bits that way, and
behind all of them its high bits: bit `4 * row + j` of a 64-bit little-endian word for every four columns.
"""

from __future__ import annotations

import torch

from ernie_local.packing.formats import TILE_ROWS

Tensor = torch.Tensor


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
