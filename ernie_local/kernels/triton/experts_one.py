"""Computes the experts of few tokens in float32: each choice of an expert by a token by itself.

A choice has a row in what lies between the kernels. What absent experts and pages of other layouts would fill
stays as it is; experts.py knows which rows count. `slots` is the memory with the pages, `places` says at
which slot an expert's page begins; a negative place means that the expert is computed elsewhere. A page of
another layout than the kernel's is left to the kernel for that layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.triton.device import PageShape
from ernie_local.kernels.triton.unpack import blocks_at_a_time, multiply_one
from ernie_local.packing import TILE_ROWS


@triton.jit
def find_place(expert_id: tl.tensor, places: tl.tensor):
    """Slot of the expert's page, int64; without a table it is the expert's number."""
    if places is None:
        place = expert_id.to(tl.int64)
    else:
        place = tl.load(places + expert_id).to(tl.int64)
    return place


@triton.jit
def has_header(page: tl.tensor, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Whether a page begins with these 16 bytes."""
    halves = page.to(tl.pointer_type(tl.int64))
    return (tl.load(halves) == LOW) & (tl.load(halves + 1) == HIGH)


def experts_of_one(call: ExpertsCall, shapes: Sequence[PageShape]) -> torch.Tensor:
    """(choices, hidden_size) float32, unweighted, choice `token * top_k + i` in that row.

    hidden and expert_ids of the call are contiguous.
    """
    hidden, slots = call.hidden, call.slots
    choices, top_k = call.expert_ids.numel(), call.expert_ids.shape[1]
    inner_size, hidden_size = shapes[0].inner_size, shapes[0].hidden_size
    inner = torch.empty(choices, inner_size, dtype=torch.float32, device=hidden.device)
    parts = torch.empty(choices, hidden_size, dtype=torch.float32, device=hidden.device)
    where = (slots, call.expert_ids, call.places)
    for shape in shapes:
        gate_and_up[(inner_size // TILE_ROWS, choices)](
            hidden,
            *where,
            inner,
            TOP_K=top_k,
            SLOT_BYTES=slots.shape[1],
            PAGE=shape,
            BLOCKS=blocks_at_a_time(shape.gate_up.num_blocks, 2 * TILE_ROWS),
        )
        down[(hidden_size // TILE_ROWS, choices)](
            inner,
            *where,
            parts,
            SLOT_BYTES=slots.shape[1],
            PAGE=shape,
            BLOCKS=blocks_at_a_time(shape.down.num_blocks, TILE_ROWS),
        )
    return parts


@triton.jit
def gate_and_up(
    hidden: tl.tensor,
    slots: tl.tensor,
    expert_ids: tl.tensor,
    places: tl.tensor,
    inner: tl.tensor,
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
    place = find_place(tl.load(expert_ids + choice), places)
    if place < 0:
        return
    page = slots + place * SLOT_BYTES
    if not has_header(page, PAGE.header_low, PAGE.header_high):
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
    inner: tl.tensor,
    slots: tl.tensor,
    expert_ids: tl.tensor,
    places: tl.tensor,
    parts: tl.tensor,
    SLOT_BYTES: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """down(inner) into parts, (choices, hidden_size) float32; program (tile, choice), the rest as above."""
    tile = tl.program_id(0)
    choice = tl.program_id(1)
    place = find_place(tl.load(expert_ids + choice), places)
    if place < 0:
        return
    page = slots + place * SLOT_BYTES
    if not has_header(page, PAGE.header_low, PAGE.header_high):
        return
    tiles = page + PAGE.down_offset + tile * PAGE.down.tile_bytes
    products = multiply_one(tiles, inner + choice * PAGE.inner_size, PAGE.down, 16, BLOCKS)
    tl.store(parts + choice * PAGE.hidden_size + tile * 16 + tl.arange(0, 16), products)
