"""Computes what each chosen expert makes of its token: of few tokens in float32, of many on tensor cores.

Of few tokens each choice of an expert is computed by itself. Of many, choices are sorted by expert first, and
cut into tiles of one expert each, in plain torch on any device: every shape follows from the shapes that come
in, so that a GPU never has to tell the host a number. Between the kernels a choice has a row.

`slots` is the memory with the pages, `places` says at which slot an expert's page begins; a negative place
means that the expert is computed elsewhere. A page of another layout than the kernel's is left to the kernel
for that layout. What absent experts and pages of other layouts would fill stays as it is; experts.py knows
which rows count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.triton.activations import Ordered, ordered
from ernie_local.kernels.triton.device import PageShape, TritonDevice
from ernie_local.kernels.triton.unpack import blocks_at_a_time, multiply_many, multiply_one
from ernie_local.packing import TILE_ROWS

NO_EXPERT = -1  # of a tile beyond the last one


def experts_of_one(call: ExpertsCall, shapes: Sequence[PageShape]) -> Tensor:
    """(choices, hidden_size) float32, unweighted, choice `token * top_k + i` in that row.

    hidden and expert_ids of the call are contiguous.
    """
    choices, top_k = call.expert_ids.numel(), call.expert_ids.shape[1]
    inner, parts = _empty_rows(call, shapes)
    where = (call.slots, call.expert_ids, call.places)
    for shape in shapes:
        constants = {"SLOT_BYTES": call.slots.shape[1], "PAGE": shape}
        blocks = blocks_at_a_time(shape.gate_up.num_blocks, 2 * TILE_ROWS)
        gate_and_up[(shape.inner_size // TILE_ROWS, choices)](
            call.hidden, *where, inner, TOP_K=top_k, BLOCKS=blocks, **constants
        )
        blocks = blocks_at_a_time(shape.down.num_blocks, TILE_ROWS)
        down[(shape.hidden_size // TILE_ROWS, choices)](inner, *where, parts, BLOCKS=blocks, **constants)
    return parts


def experts_of_many(
    call: ExpertsCall, shapes: Sequence[PageShape], device: TritonDevice
) -> tuple[Tensor, Tensor]:
    """(choices, hidden_size) float32, unweighted, and (choices,) int64: in which row each choice lies.

    hidden and expert_ids of the call are contiguous.
    """
    num_experts = call.slots.shape[0] if call.places is None else call.places.shape[0]
    per_expert = max(1, call.expert_ids.numel() // num_experts)
    tile_tokens = device.sizes_for_many(shapes[0].down, per_expert)["TOKENS"]
    groups = group_tokens(call.expert_ids, num_experts, tile_tokens)
    where = (call.slots, call.places, groups.tile_experts, groups.tile_firsts, groups.tile_ends)
    inner, parts = _empty_rows(call, shapes)
    inputs: dict[int, Ordered] = {}
    for shape in shapes:
        sizes = device.sizes_for_many(shape.gate_up, per_expert)
        tokens = _ordered_once(inputs, call.hidden, shape.gate_up.block_columns, device)
        gate_and_up_of_many[(triton.cdiv(2 * shape.inner_size, sizes["ROWS"]), len(groups.tile_experts))](
            *tokens,
            *where,
            groups.sorted_choices,
            inner,
            TOP_K=call.expert_ids.shape[1],
            SLOT_BYTES=call.slots.shape[1],
            PAGE=shape,
            **sizes,
        )
    inputs = {}
    for shape in shapes:
        sizes = device.sizes_for_many(shape.down, per_expert)
        rows = _ordered_once(inputs, inner, shape.down.block_columns, device)
        down_of_many[(triton.cdiv(shape.hidden_size, sizes["ROWS"]), len(groups.tile_experts))](
            *rows, *where, parts, SLOT_BYTES=call.slots.shape[1], PAGE=shape, **sizes
        )
    return parts, groups.positions


def _empty_rows(call: ExpertsCall, shapes: Sequence[PageShape]) -> tuple[Tensor, Tensor]:
    """(choices, inner_size) and (choices, hidden_size) float32, to be filled."""
    choices, device = call.expert_ids.numel(), call.hidden.device
    inner = torch.empty(choices, shapes[0].inner_size, dtype=torch.float32, device=device)
    return inner, torch.empty(choices, shapes[0].hidden_size, dtype=torch.float32, device=device)


def _ordered_once(inputs: dict[int, Ordered], rows: Tensor, width: int, device: TritonDevice) -> Ordered:
    if width not in inputs:
        inputs[width] = ordered(rows, width, device.dtype)
    return inputs[width]


class TokenGroups(NamedTuple):
    """Choices are counted token by token: choice `token * top_k + i`. All int64."""

    sorted_choices: Tensor  # (choices,) by expert, then by token
    positions: Tensor  # (choices,) where each choice lies among the sorted ones
    tile_experts: Tensor  # (tiles,)
    tile_firsts: Tensor  # (tiles,) the tile's first sorted choice
    tile_ends: Tensor  # (tiles,) where its expert's choices end


def group_tokens(expert_ids: Tensor, num_experts: int, tile_tokens: int) -> TokenGroups:
    """expert_ids: (tokens, top_k) int64, below `num_experts`; tile_tokens: of a tile at most."""
    flat = expert_ids.flatten()
    sorted_ids, sorted_choices = flat.sort(stable=True)
    every = torch.arange(num_experts + 1, device=flat.device)
    bounds = torch.searchsorted(sorted_ids, every)  # (experts + 1,) first choice of each
    own_tiles = (bounds.diff() + tile_tokens - 1) // tile_tokens  # (experts,)
    tiles_before = own_tiles.cumsum(0)  # (experts,) and of its own
    num_tiles = len(flat) // tile_tokens + min(num_experts, len(flat))
    tiles = torch.arange(num_tiles, device=flat.device)
    experts = torch.searchsorted(tiles_before, tiles, right=True)  # num_experts beyond the last tile
    known = experts.clamp(max=num_experts - 1)
    index = tiles - (tiles_before - own_tiles)[known]  # of the tile among its expert's
    positions = torch.empty_like(sorted_choices)
    positions[sorted_choices] = torch.arange(len(flat), device=flat.device)
    return TokenGroups(
        sorted_choices=sorted_choices,
        positions=positions,
        tile_experts=torch.where(experts < num_experts, experts, NO_EXPERT),
        tile_firsts=bounds[known] + index * tile_tokens,
        tile_ends=bounds[known + 1],
    )


@triton.jit
def find_place(expert_id, places):
    """Slot of the expert's page, int64; without a table it is the expert's number."""
    if places is None:
        place = expert_id.to(tl.int64)
    else:
        place = tl.load(places + expert_id).to(tl.int64)
    return place


@triton.jit
def has_header(page, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Whether a page begins with these 16 bytes."""
    halves = page.to(tl.pointer_type(tl.int64))
    return (tl.load(halves) == LOW) & (tl.load(halves + 1) == HIGH)


@triton.jit
def find_page(expert_id, slots, places, SLOT_BYTES: tl.constexpr, PAGE: tl.constexpr):
    """The expert's page, and whether it is here and has the layout PAGE. expert_id: may be NO_EXPERT."""
    place = find_place(tl.maximum(expert_id, 0), places)
    page = slots + place * SLOT_BYTES
    is_here = (expert_id >= 0) & (place >= 0)
    if is_here:
        is_here = has_header(page, PAGE.header_low, PAGE.header_high)
    return page, is_here


@triton.jit
def gate_and_up(
    hidden,
    slots,
    expert_ids,
    places,
    inner,
    TOP_K: tl.constexpr,
    SLOT_BYTES: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """silu(gate(x)) * up(x) into inner, (choices, inner_size) float32; program (tile, choice).

    hidden: (tokens, hidden_size) of any float; slots: bytes; expert_ids: (choices,) int64; places: (experts,)
    int64 or None.
    """
    tile = tl.program_id(0)
    choice = tl.program_id(1)
    page, is_here = find_page(tl.load(expert_ids + choice), slots, places, SLOT_BYTES, PAGE)
    if not is_here:
        return
    # The tile of gate and behind it that of up: 32 rows.
    pair = page + PAGE.gate_up_offset + tile * (2 * PAGE.gate_up.tile_bytes)
    vector = hidden + (choice // TOP_K) * PAGE.hidden_size
    both = multiply_one(pair, vector, PAGE.gate_up, 32, BLOCKS)
    gate, up = tl.split(tl.trans(tl.reshape(both, [2, 16])))  # (16,) each
    at = choice * PAGE.inner_size + tile * 16 + tl.arange(0, 16)
    tl.store(inner + at, gate / (1.0 + tl.exp(-gate)) * up)


@triton.jit
def down(
    inner,
    slots,
    expert_ids,
    places,
    parts,
    SLOT_BYTES: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """down(inner) into parts, (choices, hidden_size) float32; program (tile, choice), the rest as above."""
    tile = tl.program_id(0)
    choice = tl.program_id(1)
    page, is_here = find_page(tl.load(expert_ids + choice), slots, places, SLOT_BYTES, PAGE)
    if not is_here:
        return
    tiles = page + PAGE.down_offset + tile * PAGE.down.tile_bytes
    products = multiply_one(tiles, inner + choice * PAGE.inner_size, PAGE.down, 16, BLOCKS)
    tl.store(parts + choice * PAGE.hidden_size + tile * 16 + tl.arange(0, 16), products)


@triton.jit
def gate_and_up_of_many(
    ordered,
    row_scales,
    slots,
    places,
    tile_experts,
    tile_firsts,
    tile_ends,
    sorted_choices,
    inner,
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
    page, is_here = find_page(tl.load(tile_experts + tile), slots, places, SLOT_BYTES, PAGE)
    if not is_here:
        return
    positions = tl.load(tile_firsts + tile) + tl.arange(0, TOKENS)
    is_token = positions < tl.load(tile_ends + tile)
    token_rows = tl.load(sorted_choices + positions, mask=is_token, other=0) // TOP_K
    first = tl.program_id(0) * ROWS  # of the rows of gate and up, 16 of each in turn
    tiles = page + PAGE.gate_up_offset + (first // 16) * PAGE.gate_up.tile_bytes
    num_rows = 2 * PAGE.inner_size - first
    both = multiply_many(
        tiles, num_rows, ordered, row_scales, token_rows, is_token, PAGE.gate_up, ROWS, BLOCKS
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
    ordered,
    row_scales,
    slots,
    places,
    tile_experts,
    tile_firsts,
    tile_ends,
    parts,
    SLOT_BYTES: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """down(inner) into parts, (choices, hidden_size) float32; program (ROWS rows, tile), as above."""
    tile = tl.program_id(1)
    page, is_here = find_page(tl.load(tile_experts + tile), slots, places, SLOT_BYTES, PAGE)
    if not is_here:
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
