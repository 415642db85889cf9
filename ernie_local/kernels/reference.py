"""Says in plain torch what each operator computes; packed weights are unpacked and multiplied in float32.

Every kernel is tested against this file. It runs where the compiled module or, on a GPU, Triton is missing,
and computes experts in other libraries' formats. Activations are not rounded. Arguments were checked before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional

from ernie_local.errors import ModelUnusable
from ernie_local.kernels.arguments import (
    ABSENT_SLOT,
    SHARED_EXPERT,
    ExpertsCall,
    LayerStorage,
    LowRankExperts,
    LowRankParts,
    NewToken,
    NewTokens,
    PackedMatrix,
    broken_page,
    broken_token,
)
from ernie_local.kernels.bounded_attention import attend_frame
from ernie_local.packing import TILE_ROWS, LowBitFormat, PageLayout, dequantize, find_format, unpack_matrix
from ernie_local.packing.foreign import Dequantize, dequantize_foreign, foreign_weight
from ernie_local.packing.layout import ForeignLayout
from ernie_local.packing.page import is_foreign_page, read_foreign_page, read_layout, split_tiles

# Numbers of a matrix that are unpacked at a time, in our own formats.
_MOST_UNPACKED = 1 << 20
# Heads of patches that the tower turns at a time: 5 MB in float32 where a head is 80 wide.
_TURNED_AT_ONCE = 1 << 14
# What codes, scales and float32 of these take for a while, at 30 bytes each.
UNPACKING_BYTES = 30 * _MOST_UNPACKED
# For each number of a matrix in another library's format, which is unpacked as a whole.
FOREIGN_NUMBER_BYTES = 10


def plain_linear(tokens: Tensor, matrix: PackedMatrix) -> Tensor:
    """tokens: (tokens, columns) float32 -> (tokens, rows) float32.

    Some rows of the matrix at a time: a head unpacked as a whole takes a gigabyte.
    """
    _check_finite("packed_linear", "tokens", tokens)
    low_bit = find_format(matrix.format_name)
    tiles = matrix.packed.view(-1, low_bit.tile_bytes(tokens.shape[1]))
    return _multiply_tiles(tokens, tiles, low_bit)[:, : matrix.rows]


def plain_rows(row_ids: Tensor, matrix: PackedMatrix, columns: int) -> Tensor:
    """row_ids: (count,) int64 -> (count, columns) float32. Unpacks the tiles of one row after the other."""
    low_bit = find_format(matrix.format_name)
    tiles = matrix.packed.view(-1, low_bit.tile_bytes(columns))
    rows = []
    for row_id in row_ids.tolist():
        tile, row = divmod(row_id, TILE_ROWS)
        rows.append(dequantize(unpack_matrix(tiles[tile], low_bit, TILE_ROWS, columns))[row])
    return torch.stack(rows)


def plain_low_rank(output: Tensor, tokens: Tensor, parts: LowRankParts) -> None:
    """Add to rows of `output`, (tokens, rows), in its dtype. tokens: (tokens, columns)."""
    for inward, outward, first, count in zip(*parts, strict=True):
        output[:, first : first + count] += low_rank_product(tokens, inward, outward, count).to(output.dtype)


def low_rank_product(tokens: Tensor, inward: Tensor, outward: Tensor, rows: int) -> Tensor:
    """tokens: (tokens, columns); the others as of LowRankParts -> (tokens, rows) in tokens' dtype."""
    factors = functional.linear(tokens, inward.to(tokens.dtype))  # (tokens, rank)
    by_rank = outward.transpose(0, 1).flatten(1)[:, :rows]  # (rank, rows)
    return factors @ by_rank.to(tokens.dtype)


def plain_experts(call: ExpertsCall) -> Tensor:
    """(tokens, hidden_size) float32: the weighted sums of each token's experts."""
    output = torch.zeros_like(call.hidden)
    add_plain_experts(output, call)
    return output


def add_plain_experts(output: Tensor, call: ExpertsCall, foreign: Dequantize = dequantize_foreign) -> None:
    """As `plain_experts`, added to `output`. foreign: what unpacks matrices in other libraries' formats."""
    op, hidden = "packed_experts", call.hidden
    _check_finite(op, "hidden", hidden)
    adapter, shared_adapter = (
        None if tables is None else LowRankExperts(*tables) for tables in (call.adapter, call.shared_adapter)
    )
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
        layout = _read_expert_layout(op, page, expert_id, hidden.shape[1])
        gate, up, down = (
            partial(_multiply_expert, page=page, layout=layout, index=index, foreign=foreign)
            for index in range(3)
        )
        chosen = hidden[token_ids]
        own = shared_adapter if expert_id == SHARED_EXPERT else adapter
        row = 0 if expert_id == SHARED_EXPERT else expert_id
        inner = inner_activations(chosen, gate(chosen), up(chosen), own, row)
        finite = inner.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise broken_token(op, "hidden", int(token_ids[~finite][0]))
        output.index_add_(0, token_ids, adapted_down(inner, down(inner), own, row) * factors[:, None])


def inner_activations(
    tokens: Tensor, gate: Tensor, up: Tensor, adapter: LowRankExperts | None, expert_id: int
) -> Tensor:
    """silu(gate) * up after an adapter has added to both. tokens: (tokens, hidden_size).

    gate, up: products of the tokens, (tokens, inner_size) each -> the same shape.
    """
    if adapter is not None:
        rows = gate.shape[1]
        gate, up = (
            product + low_rank_product(tokens, *matrices, rows)
            for product, matrices in zip((gate, up), adapter.gate_and_up(expert_id), strict=True)
        )
    return functional.silu(gate) * up


def adapted_down(inner: Tensor, down: Tensor, adapter: LowRankExperts | None, expert_id: int) -> Tensor:
    """What down gives of `inner`, (tokens, inner_size), with what an adapter adds; (tokens, hidden_size)."""
    if adapter is None:
        return down
    return down + low_rank_product(inner, *adapter.down(expert_id), down.shape[1])


def plain_rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """hidden: (..., size) in any float dtype -> the same shape and dtype.

    The mean is taken in float32 and the result is cast back before the weight is applied: the order in
    which the model was trained, and the one that decides router near-ties in 16-bit runs.
    """
    exact = hidden.float()
    mean_square = exact.pow(2).mean(-1, keepdim=True)
    return weight * (exact * torch.rsqrt(mean_square + eps)).to(hidden.dtype)


def plain_route(
    hidden: Tensor, weight: Tensor, bias: Tensor, top_k: int, norm_min: float
) -> tuple[Tensor, Tensor]:
    """hidden: (tokens, hidden_size) float32 -> expert ids and weights, (tokens, top_k) each."""
    scores = functional.softmax(functional.linear(hidden, weight), dim=-1)
    # A stable sort, for topk promises no order among equals.
    expert_ids = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = scores.gather(-1, expert_ids)
    return expert_ids.clone(), chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=norm_min)


def plain_attention(new_token: NewToken, cache: LayerStorage, length: int) -> Tensor:
    """(heads, head_dim) float32, of the new token. Writes row `length` of the cache."""
    angles = new_token.cosines, new_token.sines
    queries, keys = _rotated(new_token.queries, *angles), _rotated(new_token.keys, *angles)
    all_keys = _stored(keys, cache.keys, cache.key_scales, length)  # (kv_heads, length + 1, head_dim)
    all_values = _stored(new_token.values, cache.values, cache.value_scales, length)
    grouped = queries.view(len(keys), -1, queries.shape[-1])  # (kv_heads, group, head_dim)
    scores = grouped @ all_keys.mT / queries.shape[-1] ** 0.5  # (kv_heads, group, length + 1)
    attended: Tensor = scores.softmax(-1) @ all_values  # (kv_heads, group, head_dim)
    return attended.reshape(queries.shape)


def plain_chunk_attention(chunk: NewTokens, cache: LayerStorage, length: int) -> Tensor:
    """(tokens, heads, head_dim) float32, one token after the other. Writes rows from `length` on."""
    tokens = zip(*chunk, strict=True)
    attended = [
        plain_attention(NewToken(*token), cache, length + index) for index, token in enumerate(tokens)
    ]
    return torch.stack(attended)


def plain_frame_attention(
    states: Tensor, cosines: Tensor, sines: Tensor, heads: int, frame_sizes: Sequence[int]
) -> Tensor:
    """(patches, heads * head_dim), in any float dtype; turned in float32."""
    num_patches = states.shape[0]
    fused = states.view(num_patches, 3, heads, -1)  # (patches, 3, heads, head_dim)
    output = states.new_empty(num_patches, heads, fused.shape[-1])
    frames = [slice(*bounds) for bounds in pairwise(accumulate(frame_sizes, initial=0))]
    at_once = max(1, _TURNED_AT_ONCE // num_patches)
    for first in range(0, heads, at_once):
        some = slice(first, first + at_once)
        queries, keys = (rotate_halves(fused[:, part, some], cosines, sines) for part in (0, 1))
        for frame in frames:
            own = [part[frame].transpose(0, 1)[None] for part in (queries, keys, fused[:, 2, some])]
            # (1, heads, patches of the frame, head_dim)
            attended = attend_frame(own[0], own[1], own[2])
            output[frame, some] = attended[0].transpose(0, 1)
    return output.flatten(1)


def rotate_halves(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn pairs half a head apart. states: (patches, heads, head_dim); angles: (patches, head_dim / 2)."""
    first, second = states.float().chunk(2, dim=-1)  # (patches, heads, head_dim / 2) each
    cosines, sines = cosines[:, None], sines[:, None]  # (patches, 1, head_dim / 2)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.to(states.dtype)


def _rotated(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Neighbouring pairs rotated. states: (heads, head_dim); angles: (head_dim / 2,)."""
    even, odd = states[:, 0::2], states[:, 1::2]  # (heads, head_dim / 2) each
    rotated = torch.stack((even * cosines - odd * sines, odd * cosines + even * sines), dim=-1)
    return rotated.flatten(-2)  # (heads, head_dim)


def _stored(states: Tensor, cached: Tensor, scales: Tensor | None, length: int) -> Tensor:
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


def _read_expert_layout(
    op: str, slot_bytes: Tensor, expert_id: int, hidden_size: int
) -> PageLayout | ForeignLayout:
    read = read_foreign_page if is_foreign_page(slot_bytes) else read_layout
    try:
        layout = read(slot_bytes, allow_padding=True)
    except ModelUnusable as error:
        raise broken_page(op, expert_id, hidden_size) from error
    if layout.hidden_size != hidden_size:
        raise broken_page(op, expert_id, hidden_size)
    return layout


def _multiply_expert(
    tokens: Tensor, page: Tensor, layout: PageLayout | ForeignLayout, index: int, foreign: Dequantize
) -> Tensor:
    """Product with gate, up or down (0, 1, 2), which is unpacked for it alone: no two are there unpacked."""
    if isinstance(layout, ForeignLayout):
        return functional.linear(tokens, foreign_weight(page, layout, index, foreign))
    low_bit = (layout.gate_up, layout.gate_up, layout.down)[index]
    return _multiply_tiles(tokens, split_tiles(page, layout)[index], low_bit)


def _multiply_tiles(tokens: Tensor, tiles: Tensor, low_bit: LowBitFormat) -> Tensor:
    """tokens: (tokens, columns); tiles: (tiles, tile_bytes) uint8 -> (tokens, tiles * 16)."""
    columns = tokens.shape[1]
    tiles_at_once = max(1, _MOST_UNPACKED // (TILE_ROWS * columns))
    parts = []
    for some in tiles.split(tiles_at_once):
        unpacked = unpack_matrix(some.flatten(), low_bit, TILE_ROWS * len(some), columns)
        parts.append(functional.linear(tokens, dequantize(unpacked)))
    return torch.cat(parts, dim=1)


def _check_finite(op: str, name: str, tokens: Tensor) -> None:
    finite = tokens.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise broken_token(op, name, int((~finite).nonzero()[0]))
