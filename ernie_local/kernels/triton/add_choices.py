"""The weighted sum of each token's experts, added to what is there: by expert ids, the shared one last.

One order, whatever was computed when: a sum made in several calls is that of one call, to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ernie_local.kernels.triton.page_table import find_place, has_header


@triton.jit
def is_known(page: tl.tensor, HEADERS: tl.constexpr):
    """Whether some kernel of this call computes pages that begin like this one."""
    known = has_header(page, HEADERS[0][0], HEADERS[0][1])
    for index in tl.static_range(1, len(HEADERS)):
        known = known | has_header(page, HEADERS[index][0], HEADERS[index][1])
    return known


@triton.jit
def add_choices(
    output: tl.tensor,
    parts: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    expert_ids: tl.tensor,
    places: tl.tensor,
    weights: tl.tensor,
    shared_parts: tl.tensor,
    shared_page: tl.tensor,
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
