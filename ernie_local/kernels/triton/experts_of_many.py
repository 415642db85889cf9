"""Experts of many tokens: a program multiplies some tokens of one expert. Kernels and their start.

token_groups.py says which those are. Rows between the kernels are choices, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ernie_local.kernels.triton.gpu import Gpu
from ernie_local.kernels.triton.multiply_many import multiply_many
from ernie_local.kernels.triton.ordered import Ordered, ordered
from ernie_local.kernels.triton.page_table import find_place, has_header
from ernie_local.kernels.triton.tile_shape import PageShape
from ernie_local.kernels.triton.token_groups import group_tokens


def experts_of_many(
    hidden: torch.Tensor,
    slots: torch.Tensor,
    expert_ids: torch.Tensor,
    places: torch.Tensor | None,
    shapes: Sequence[PageShape],
    gpu: Gpu,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(choices, hidden_size) float32, unweighted, and (choices,) int64: in which row each choice lies.

    hidden: (tokens, hidden_size); expert_ids: (tokens, top_k); both contiguous, the rest as in experts.py.
    """
    choices, top_k = expert_ids.numel(), expert_ids.shape[1]
    inner_size, hidden_size = shapes[0].inner_size, shapes[0].hidden_size
    num_experts = slots.shape[0] if places is None else places.shape[0]
    per_expert = max(1, choices // num_experts)
    groups = group_tokens(expert_ids, num_experts, gpu.sizes_for_many(shapes[0].down, per_expert)["TOKENS"])
    tiles = (groups.tile_experts, groups.tile_firsts, groups.tile_ends)
    inner = torch.empty(choices, inner_size, dtype=torch.float32, device=hidden.device)
    parts = torch.empty(choices, hidden_size, dtype=torch.float32, device=hidden.device)
    inputs: dict[int, Ordered] = {}
    for shape in shapes:
        sizes = gpu.sizes_for_many(shape.gate_up, per_expert)
        tokens = _ordered_once(inputs, hidden, shape.gate_up.block_columns, gpu)
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
        sizes = gpu.sizes_for_many(shape.down, per_expert)
        rows = _ordered_once(inputs, inner, shape.down.block_columns, gpu)
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


def _ordered_once(inputs: dict[int, Ordered], rows: torch.Tensor, width: int, gpu: Gpu) -> Ordered:
    if width not in inputs:
        inputs[width] = ordered(rows, width, gpu.dtype)
    return inputs[width]


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
    expert_id = tl.load(tile_experts + tile)
    if expert_id < 0:
        return
    place = find_place(expert_id, places)
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
    expert_id = tl.load(tile_experts + tile)
    if expert_id < 0:
        return
    place = find_place(expert_id, places)
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
