"""Starts the kernels of experts, for few tokens or many, and adds up each token's experts.

Nothing here waits for the GPU or reads from it; what the CPU operator would refuse in a token (a NaN) goes
through to the output instead. Experts are added by their ids, the shared one last, whatever was computed
when: a sum made in several calls is that of one call, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.triton.device import PageShape, TritonDevice, shapes_of_bank
from ernie_local.kernels.triton.expert_parts import experts_of_many, experts_of_one, find_place, has_header
from ernie_local.packing import PageLayout

# More tokens than these share what is read of an expert.
MOST_ONE_BY_ONE = 8
_COLUMNS_OF_SUM = 256


def add_experts(
    output: Tensor,
    call: ExpertsCall,
    layouts: Sequence[PageLayout],
    shared_layout: PageLayout | None,
    device: TritonDevice,
) -> None:
    """As the operator add_packed_experts, on one GPU, for pages of the given layouts.

    layouts: all that the experts of this call may have; a page of another one makes its tokens NaN.
    shared_layout: of the shared page. More tokens than MOST_ONE_BY_ONE are rounded to the GPU's dtype, fewer
    are multiplied in float32. Raises UsageError for layouts of several sizes.
    """
    num_tokens, top_k = call.expert_ids.shape
    if not num_tokens:
        return
    shapes = shapes_of_bank(layouts)
    call = call._replace(
        hidden=call.hidden.contiguous(),
        expert_ids=call.expert_ids.contiguous(),
        weights=call.weights.contiguous(),
    )
    parts, positions = _compute(call, shapes, device)
    shared_parts, shared_shapes = None, shapes
    if call.shared_page is not None:
        assert shared_layout is not None, "a shared page has a layout"
        shared_shapes = shapes_of_bank([shared_layout])
        only = torch.zeros(num_tokens, 1, dtype=torch.int64, device=call.hidden.device)
        # One choice a token: sorted by expert, they are in order of tokens as before.
        shared = call._replace(slots=call.shared_page, expert_ids=only, places=None)
        shared_parts, _ = _compute(shared, shared_shapes, device)
    hidden_size = call.hidden.shape[1]
    add_choices[(num_tokens, triton.cdiv(hidden_size, _COLUMNS_OF_SUM))](
        output,
        parts,
        positions,
        call.slots,
        call.expert_ids,
        call.places,
        call.weights,
        shared_parts,
        call.shared_page,
        HIDDEN_SIZE=hidden_size,
        TOP_K=top_k,
        CHOICES=triton.next_power_of_2(top_k),
        SLOT_BYTES=call.slots.shape[1],
        HEADERS=_headers(shapes),
        SHARED_HEADERS=_headers(shared_shapes),
        COLUMNS=_COLUMNS_OF_SUM,
    )


def _compute(
    call: ExpertsCall, shapes: Sequence[PageShape], device: TritonDevice
) -> tuple[Tensor, Tensor | None]:
    """What each choice's expert makes of its token, and in which row that lies if not in its own."""
    if len(call.hidden) <= MOST_ONE_BY_ONE:
        return experts_of_one(call, shapes), None
    return experts_of_many(call, shapes, device)


def _headers(shapes: Sequence[PageShape]) -> tuple[tuple[int, int], ...]:
    return tuple((shape.header_low, shape.header_high) for shape in shapes)


@triton.jit
def is_known(page, HEADERS: tl.constexpr):
    """Whether some kernel of this call computes pages that begin like this one."""
    known = has_header(page, HEADERS[0][0], HEADERS[0][1])
    for index in tl.static_range(1, len(HEADERS)):
        known = known | has_header(page, HEADERS[index][0], HEADERS[index][1])
    return known


@triton.jit
def add_choices(
    output,
    parts,
    positions,
    slots,
    expert_ids,
    places,
    weights,
    shared_parts,
    shared_page,
    HIDDEN_SIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
    SLOT_BYTES: tl.constexpr,
    HEADERS: tl.constexpr,
    SHARED_HEADERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program (token, COLUMNS columns). A page that no kernel of this call computes makes its tokens NaN.

    output: (tokens, HIDDEN_SIZE) float32; parts: rows of it; positions: (tokens * TOP_K,) the row of each
    choice, or None where it is the choice itself; shared_parts: (tokens, HIDDEN_SIZE) or None, computed from
    shared_page. CHOICES: TOP_K rounded up to a power of two.
    """
    NO_EXPERT: tl.constexpr = 1 << 62
    token = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < HIDDEN_SIZE
    sums = tl.load(output + token * HIDDEN_SIZE + columns, mask=inside, other=0.0)
    index = tl.arange(0, CHOICES)
    waiting = tl.load(expert_ids + token * TOP_K + index, mask=index < TOP_K, other=NO_EXPERT)
    for _ in tl.static_range(TOP_K):
        expert_id = tl.min(waiting, axis=0)
        # The first of equal ones.
        choice = tl.min(tl.where(waiting == expert_id, index, CHOICES), axis=0)
        waiting = tl.where(index == choice, NO_EXPERT, waiting)
        place = find_place(expert_id, places)
        if place >= 0:
            row = token * TOP_K + choice
            weight = tl.load(weights + row).to(tl.float32)
            if positions is not None:
                row = tl.load(positions + row)
            part = tl.load(parts + row.to(tl.int64) * HIDDEN_SIZE + columns, mask=inside, other=0.0)
            part = tl.where(is_known(slots + place * SLOT_BYTES, HEADERS), part, float("nan"))
            sums += weight * part
    if shared_parts is not None:
        part = tl.load(shared_parts + token * HIDDEN_SIZE + columns, mask=inside, other=0.0)
        sums += tl.where(is_known(shared_page, SHARED_HEADERS), part, float("nan"))
    tl.store(output + token * HIDDEN_SIZE + columns, sums, mask=inside)
