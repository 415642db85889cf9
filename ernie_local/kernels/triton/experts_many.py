"""Computes the experts of many tokens: a program multiplies some tokens of one expert.

Choices are sorted by expert first, and cut into tiles of one expert each, in plain torch on any device: every
shape follows from the shapes that come in, so that a GPU never has to tell the host a number. Rows between
the kernels are choices, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.triton.activations import Ordered, ordered
from ernie_local.kernels.triton.device import PageShape, TritonDevice
from ernie_local.kernels.triton.experts_one import find_place, has_header
from ernie_local.kernels.triton.unpack import multiply_many

NO_EXPERT = -1  # of a tile beyond the last one


@dataclass(frozen=True, slots=True)
class TokenGroups:
    """Choices are counted token by token: choice `token * top_k + i`. All int64."""

    sorted_choices: torch.Tensor  # (choices,) by expert, then by token
    positions: torch.Tensor  # (choices,) where each choice lies among the sorted ones
    tile_experts: torch.Tensor  # (tiles,)
    tile_firsts: torch.Tensor  # (tiles,) the tile's first sorted choice
    tile_ends: torch.Tensor  # (tiles,) where its expert's choices end


def group_tokens(expert_ids: torch.Tensor, num_experts: int, tile_tokens: int) -> TokenGroups:
    """expert_ids: (tokens, top_k) int64, below `num_experts`; tile_tokens: of a tile at most."""
    flat = expert_ids.flatten()
    sorted_ids, sorted_choices = flat.sort(stable=True)
    every = torch.arange(num_experts + 1, device=flat.device)
    bounds = torch.searchsorted(sorted_ids, every)  # (experts + 1,) first choice of each
    tiles_before = ((bounds.diff() + tile_tokens - 1) // tile_tokens).cumsum(0)  # (experts,) and of its own
    num_tiles = len(flat) // tile_tokens + min(num_experts, len(flat))
    tiles = torch.arange(num_tiles, device=flat.device)
    experts = torch.searchsorted(tiles_before, tiles, right=True)  # num_experts beyond the last tile
    known = experts.clamp(max=num_experts - 1)
    own_tiles = (bounds[known + 1] - bounds[known] + tile_tokens - 1) // tile_tokens
    index = tiles - (tiles_before[known] - own_tiles)  # of the tile among its expert's
    positions = torch.empty_like(sorted_choices)
    positions[sorted_choices] = torch.arange(len(flat), device=flat.device)
    return TokenGroups(
        sorted_choices=sorted_choices,
        positions=positions,
        tile_experts=torch.where(experts < num_experts, experts, NO_EXPERT),
        tile_firsts=bounds[known] + index * tile_tokens,
        tile_ends=bounds[known + 1],
    )


def experts_of_many(
    call: ExpertsCall, shapes: Sequence[PageShape], device: TritonDevice
) -> tuple[torch.Tensor, torch.Tensor]:
    """(choices, hidden_size) float32, unweighted, and (choices,) int64: in which row each choice lies.

    hidden and expert_ids of the call are contiguous.
    """
    hidden, slots, expert_ids, places = call.hidden, call.slots, call.expert_ids, call.places
    choices, top_k = expert_ids.numel(), expert_ids.shape[1]
    inner_size, hidden_size = shapes[0].inner_size, shapes[0].hidden_size
    num_experts = slots.shape[0] if places is None else places.shape[0]
    per_expert = max(1, choices // num_experts)
    groups = group_tokens(
        expert_ids, num_experts, device.sizes_for_many(shapes[0].down, per_expert)["TOKENS"]
    )
    tiles = (groups.tile_experts, groups.tile_firsts, groups.tile_ends)
    inner = torch.empty(choices, inner_size, dtype=torch.float32, device=hidden.device)
    parts = torch.empty(choices, hidden_size, dtype=torch.float32, device=hidden.device)
    inputs: dict[int, Ordered] = {}
    for shape in shapes:
        sizes = device.sizes_for_many(shape.gate_up, per_expert)
        tokens = _ordered_once(inputs, hidden, shape.gate_up.block_columns, device)
        gate_and_up_of_many[(triton.cdiv(2 * inner_size, sizes["ROWS"]), len(tiles[0]))](
            tokens.numbers,
            tokens.row_scales,
            slots,
            places,
            *tiles,
            groups.sorted_choices,
            inner,
            TOP_K=top_k,
            SLOT_BYTES=slots.shape[1],
            PAGE=shape,
            **sizes,
        )
    inputs = {}
    for shape in shapes:
        sizes = device.sizes_for_many(shape.down, per_expert)
        rows = _ordered_once(inputs, inner, shape.down.block_columns, device)
        down_of_many[(triton.cdiv(hidden_size, sizes["ROWS"]), len(tiles[0]))](
            rows.numbers,
            rows.row_scales,
            slots,
            places,
            *tiles,
            parts,
            SLOT_BYTES=slots.shape[1],
            PAGE=shape,
            **sizes,
        )
    return parts, groups.positions


def _ordered_once(
    inputs: dict[int, Ordered], rows: torch.Tensor, width: int, device: TritonDevice
) -> Ordered:
    if width not in inputs:
        inputs[width] = ordered(rows, width, device.dtype)
    return inputs[width]


@triton.jit
def find_tile_place(expert_id: tl.tensor, places: tl.tensor):
    """As find_place; negative also for a tile without an expert."""
    place = find_place(tl.maximum(expert_id, 0), places)
    return tl.where(expert_id < 0, -1, place)


@triton.jit
def gate_and_up_of_many(
    ordered: tl.tensor,
    row_scales: tl.tensor,
    slots: tl.tensor,
    places: tl.tensor,
    tile_experts: tl.tensor,
    tile_firsts: tl.tensor,
    tile_ends: tl.tensor,
    sorted_choices: tl.tensor,
    inner: tl.tensor,
    TOP_K: tl.constexpr,
    SLOT_BYTES: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """silu(gate(x)) * up(x) into inner, (choices, inner_size) float32; program (half of ROWS columns, tile).

    ordered, row_scales: the tokens as order_by_plane leaves them; tile_*: (tiles,) of TokenGroups;
    sorted_choices: (choices,) int64; slots, places as everywhere.
    """
    tile = tl.program_id(1)
    place = find_tile_place(tl.load(tile_experts + tile), places)
    if place < 0:
        return
    page = slots + place * SLOT_BYTES
    if not has_header(page, PAGE.header_low, PAGE.header_high):
        return
    positions = tl.load(tile_firsts + tile) + tl.arange(0, TOKENS)
    is_token = positions < tl.load(tile_ends + tile)
    token_rows = tl.load(sorted_choices + positions, mask=is_token, other=0) // TOP_K
    first = tl.program_id(0) * ROWS  # of the rows of gate and up, 16 of each in turn
    tiles = page + PAGE.gate_up_offset + (first // 16) * PAGE.gate_up.tile_bytes
    both = multiply_many(
        tiles,
        2 * PAGE.inner_size - first,
        ordered,
        row_scales,
        token_rows,
        is_token,
        PAGE.gate_up,
        ROWS,
        BLOCKS,
    )
    by_kind = tl.permute(
        tl.reshape(both, [TOKENS, ROWS // 32, 2, 16]), [0, 1, 3, 2]
    )  # (tokens, tile, row, kind)
    gate, up = tl.split(by_kind)
    result = tl.reshape(gate / (1.0 + tl.exp(-gate)) * up, [TOKENS, ROWS // 2])
    columns = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    inside = is_token[:, None] & (columns < PAGE.inner_size)[None, :]
    tl.store(inner + positions[:, None] * PAGE.inner_size + columns[None, :], result, mask=inside)


@triton.jit
def down_of_many(
    ordered: tl.tensor,
    row_scales: tl.tensor,
    slots: tl.tensor,
    places: tl.tensor,
    tile_experts: tl.tensor,
    tile_firsts: tl.tensor,
    tile_ends: tl.tensor,
    parts: tl.tensor,
    SLOT_BYTES: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """down(inner) into parts, (choices, hidden_size) float32; program (ROWS rows, tile), as above."""
    tile = tl.program_id(1)
    place = find_tile_place(tl.load(tile_experts + tile), places)
    if place < 0:
        return
    page = slots + place * SLOT_BYTES
    if not has_header(page, PAGE.header_low, PAGE.header_high):
        return
    positions = tl.load(tile_firsts + tile) + tl.arange(0, TOKENS)
    is_token = positions < tl.load(tile_ends + tile)
    first = tl.program_id(0) * ROWS
    tiles = page + PAGE.down_offset + (first // 16) * PAGE.down.tile_bytes
    num_rows = PAGE.hidden_size - first
    result = multiply_many(tiles, num_rows, ordered, row_scales, positions, is_token, PAGE.down, ROWS, BLOCKS)
    rows = tl.arange(0, ROWS)
    inside = is_token[:, None] & (rows < num_rows)[None, :]
    tl.store(parts + positions[:, None] * PAGE.hidden_size + (first + rows)[None, :], result, mask=inside)
