"""What the packed operators mean, in plain torch: unpack, dequantize, multiply in float32.

The oracle of every kernel, and what runs where the native module is missing. Activations are not rounded.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ernie_local.errors import ModelUnusable
from ernie_local.kernels.checks import broken_page, broken_token
from ernie_local.packing import TILE_ROWS, LowBitFormat, dequantize, unpack_matrix, unpack_page
from ernie_local.packing.expert_page import read_layout


def packed_linear(
    tokens: torch.Tensor, packed: torch.Tensor, low_bit: LowBitFormat, rows: int
) -> torch.Tensor:
    """tokens: (tokens, columns) float32 -> (tokens, rows) float32."""
    _check_finite("packed_linear", "tokens", tokens)
    weights = dequantize(unpack_matrix(packed, low_bit, rows, tokens.shape[1]))
    return functional.linear(tokens, weights)


def packed_rows(
    row_ids: torch.Tensor, packed: torch.Tensor, low_bit: LowBitFormat, columns: int
) -> torch.Tensor:
    """row_ids: (count,) int64 -> (count, columns) float32. Unpacks the tiles of one row after the other."""
    tiles = packed.view(-1, low_bit.tile_bytes(columns))
    rows = []
    for row_id in row_ids.tolist():
        tile, row = divmod(row_id, TILE_ROWS)
        rows.append(dequantize(unpack_matrix(tiles[tile], low_bit, TILE_ROWS, columns))[row])
    return torch.stack(rows)


def packed_experts(
    hidden: torch.Tensor, slots: torch.Tensor, slot_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """hidden: (tokens, hidden_size) float32 -> the weighted sums of each token's experts, the same shape."""
    op = "packed_experts"
    _check_finite(op, "hidden", hidden)
    output = torch.zeros_like(hidden)
    for slot in slot_ids.unique().tolist():
        gate, up, down = _expert_weights(op, slots[slot], slot, hidden.shape[1])
        token_ids, choices = (slot_ids == slot).nonzero(as_tuple=True)
        chosen = hidden[token_ids]
        inner = functional.silu(functional.linear(chosen, gate)) * functional.linear(chosen, up)
        finite = inner.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise broken_token(op, "hidden", int(token_ids[~finite][0]))
        result = functional.linear(inner, down) * weights[token_ids, choices, None]
        output.index_add_(0, token_ids, result)
    return output


def _expert_weights(
    op: str, slot_bytes: torch.Tensor, slot: int, hidden_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    try:
        layout = read_layout(slot_bytes, allow_padding=True)
    except ModelUnusable as error:
        raise broken_page(op, slot, hidden_size) from error
    if layout.hidden_size != hidden_size:
        raise broken_page(op, slot, hidden_size)
    page = unpack_page(slot_bytes[: layout.page_bytes])
    return dequantize(page.gate), dequantize(page.up), dequantize(page.down)


def _check_finite(op: str, name: str, tokens: torch.Tensor) -> None:
    finite = tokens.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise broken_token(op, name, int((~finite).nonzero()[0]))
