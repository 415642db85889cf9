"""Says in plain torch what each operator computes; packed weights are unpacked and multiplied in float32.

Every kernel is tested against this file. It runs where the compiled module or, on a GPU, Triton is missing,
and computes experts in other libraries' formats. Activations are not rounded. Arguments were checked before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from ernie_local.errors import ModelUnusable
from ernie_local.kernels.arguments import (
    ABSENT_SLOT,
    SHARED_EXPERT,
    ExpertsCall,
    LayerStorage,
    NewToken,
    PackedMatrix,
)
from ernie_local.kernels.checks import broken_page, broken_token
from ernie_local.packing import TILE_ROWS, LowBitFormat, dequantize, find_format, unpack_matrix
from ernie_local.packing.foreign import (
    Dequantize,
    dequantize_foreign,
    foreign_weight,
    is_foreign_page,
    read_foreign_page,
)
from ernie_local.packing.layout import ForeignLayout
from ernie_local.packing.page import read_layout

# Of tokens, (tokens, columns), to (tokens, rows).
Product = Callable[[torch.Tensor], torch.Tensor]
# Numbers of a matrix that are unpacked at a time, in our own formats.
_MOST_UNPACKED = 1 << 20
# What codes, scales and float32 of these take for a while, at 30 bytes each.
UNPACKING_BYTES = 30 * _MOST_UNPACKED
# For each number of a matrix in another library's format, which is unpacked as a whole.
FOREIGN_NUMBER_BYTES = 10


def plain_linear(tokens: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
    """tokens: (tokens, columns) float32 -> (tokens, rows) float32.

    Some rows of the matrix at a time: a head unpacked as a whole takes a gigabyte.
    """
    _check_finite("packed_linear", "tokens", tokens)
    low_bit = find_format(matrix.format_name)
    tiles = matrix.packed.view(-1, low_bit.tile_bytes(tokens.shape[1]))
    return _multiply_tiles(tokens, tiles, low_bit)[:, : matrix.rows]


def plain_rows(row_ids: torch.Tensor, matrix: PackedMatrix, columns: int) -> torch.Tensor:
    """row_ids: (count,) int64 -> (count, columns) float32. Unpacks the tiles of one row after the other."""
    low_bit = find_format(matrix.format_name)
    tiles = matrix.packed.view(-1, low_bit.tile_bytes(columns))
    rows = []
    for row_id in row_ids.tolist():
        tile, row = divmod(row_id, TILE_ROWS)
        rows.append(dequantize(unpack_matrix(tiles[tile], low_bit, TILE_ROWS, columns))[row])
    return torch.stack(rows)


def plain_experts(call: ExpertsCall) -> torch.Tensor:
    """(tokens, hidden_size) float32: the weighted sums of each token's experts."""
    output = torch.zeros_like(call.hidden)
    add_plain_experts(output, call)
    return output


def add_plain_experts(
    output: torch.Tensor, call: ExpertsCall, foreign: Dequantize = dequantize_foreign
) -> None:
    """As `plain_experts`, added to `output`. foreign: what unpacks matrices in other libraries' formats."""
    op, hidden = "packed_experts", call.hidden
    _check_finite(op, "hidden", hidden)
    parts = []
    for expert_id in call.expert_ids.unique().tolist():
        slot = expert_id if call.places is None else int(call.places[expert_id])
        if slot != ABSENT_SLOT:
            rows, choices = (call.expert_ids == expert_id).nonzero(as_tuple=True)
            # A page begins at a slot, and may take several.
            parts.append((expert_id, call.slots[slot:].flatten(), rows, call.weights[rows, choices]))
    if call.shared_page is not None:
        everyone = torch.arange(hidden.shape[0], device=hidden.device)
        parts.append((SHARED_EXPERT, call.shared_page[0], everyone, hidden.new_ones(hidden.shape[0])))
    for expert_id, page, token_ids, factors in parts:
        gate, up, down = _expert_products(op, page, expert_id, hidden.shape[1], foreign)
        chosen = hidden[token_ids]
        inner = functional.silu(gate(chosen)) * up(chosen)
        finite = inner.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise broken_token(op, "hidden", int(token_ids[~finite][0]))
        output.index_add_(0, token_ids, down(inner) * factors[:, None])


def plain_rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """hidden: (tokens, size) float32 -> the same shape."""
    mean_square = hidden.pow(2).mean(-1, keepdim=True)
    return weight * (hidden * torch.rsqrt(mean_square + eps))


def plain_route(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, top_k: int, norm_min: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden: (tokens, hidden_size) float32 -> expert ids and weights, (tokens, top_k) each."""
    scores = functional.softmax(functional.linear(hidden, weight), dim=-1)
    # A stable sort, for topk promises no order among equals.
    expert_ids = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = scores.gather(-1, expert_ids)
    return expert_ids.clone(), chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=norm_min)


def plain_attention(new_token: NewToken, cache: LayerStorage, length: int) -> torch.Tensor:
    """(heads, head_dim) float32, of the new token. Writes row `length` of the cache."""
    angles = new_token.cosines, new_token.sines
    queries, keys = _rotated(new_token.queries, *angles), _rotated(new_token.keys, *angles)
    all_keys = _stored(keys, cache.keys, cache.key_scales, length)  # (kv_heads, length + 1, head_dim)
    all_values = _stored(new_token.values, cache.values, cache.value_scales, length)
    grouped = queries.view(len(keys), -1, queries.shape[-1])  # (kv_heads, group, head_dim)
    scores = grouped @ all_keys.mT / queries.shape[-1] ** 0.5  # (kv_heads, group, length + 1)
    attended: torch.Tensor = scores.softmax(-1) @ all_values  # (kv_heads, group, head_dim)
    return attended.reshape(queries.shape)


def _rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Neighbouring pairs rotated. states: (heads, head_dim); angles: (head_dim / 2,)."""
    even, odd = states[:, 0::2], states[:, 1::2]  # (heads, head_dim / 2) each
    rotated = torch.stack((even * cosines - odd * sines, odd * cosines + even * sines), dim=-1)
    return rotated.flatten(-2)  # (heads, head_dim)


def _stored(
    states: torch.Tensor, cached: torch.Tensor, scales: torch.Tensor | None, length: int
) -> torch.Tensor:
    """Write states, (kv_heads, head_dim), at `length`; all of the cache up to there, float32."""
    if scales is None:
        cached[:, length] = states.to(cached.dtype)
        return cached[:, : length + 1].float()
    largest = states.abs().amax(-1, keepdim=True)
    scales[:, length] = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    # A state with a NaN or an infinity is lost by its scale already; as int8 these are undefined.
    rounded = torch.round(states / scales[:, length]).nan_to_num(0)
    cached[:, length] = rounded.to(torch.int8)
    return cached[:, : length + 1].float() * scales[:, : length + 1]


def _expert_products(
    op: str, slot_bytes: torch.Tensor, expert_id: int, hidden_size: int, foreign: Dequantize
) -> tuple[Product, Product, Product]:
    """With gate, up and down. Each unpacks when it is called, so that no two are there unpacked."""
    is_foreign = is_foreign_page(slot_bytes)
    try:
        layout = (read_foreign_page if is_foreign else read_layout)(slot_bytes, allow_padding=True)
    except ModelUnusable as error:
        raise broken_page(op, expert_id, hidden_size) from error
    if layout.hidden_size != hidden_size:
        raise broken_page(op, expert_id, hidden_size)
    if isinstance(layout, ForeignLayout):
        return _foreign_products(slot_bytes, layout, foreign)
    num_tiles = layout.gate_up.num_tiles(layout.inner_size)
    in_turn = slot_bytes[layout.gate_up_offset : layout.down_offset].view(num_tiles, 2, -1)
    down = slot_bytes[layout.down_offset : layout.down_offset + layout.down_bytes]
    down_tiles = down.view(layout.down.num_tiles(hidden_size), -1)
    return (
        partial(_multiply_tiles, tiles=in_turn[:, 0], low_bit=layout.gate_up),
        partial(_multiply_tiles, tiles=in_turn[:, 1], low_bit=layout.gate_up),
        partial(_multiply_tiles, tiles=down_tiles, low_bit=layout.down),
    )


def _foreign_products(
    slot_bytes: torch.Tensor, layout: ForeignLayout, dequantize: Dequantize
) -> tuple[Product, Product, Product]:
    def multiply(tokens: torch.Tensor, index: int) -> torch.Tensor:
        return functional.linear(tokens, foreign_weight(slot_bytes, layout, index, dequantize))

    return partial(multiply, index=0), partial(multiply, index=1), partial(multiply, index=2)


def _multiply_tiles(tokens: torch.Tensor, tiles: torch.Tensor, low_bit: LowBitFormat) -> torch.Tensor:
    """tokens: (tokens, columns); tiles: (tiles, tile_bytes) uint8 -> (tokens, tiles * 16)."""
    columns = tokens.shape[1]
    tiles_at_once = max(1, _MOST_UNPACKED // (TILE_ROWS * columns))
    parts = []
    for some in tiles.split(tiles_at_once):
        unpacked = unpack_matrix(some.flatten(), low_bit, TILE_ROWS * len(some), columns)
        parts.append(functional.linear(tokens, dequantize(unpacked)))
    return torch.cat(parts, dim=1)


def _check_finite(op: str, name: str, tokens: torch.Tensor) -> None:
    finite = tokens.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise broken_token(op, name, int((~finite).nonzero()[0]))
