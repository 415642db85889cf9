"""Starts the kernels of routed and shared experts, of few tokens or of many.

Knows which kernels serve how many tokens, and what memory lies between them. Nothing here waits for the GPU
or reads from it; what the CPU operator would refuse in a token (a NaN) goes through to the output instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton

from ernie_local.kernels.triton.add_choices import add_choices
from ernie_local.kernels.triton.experts_of_many import experts_of_many
from ernie_local.kernels.triton.experts_of_one import experts_of_one
from ernie_local.kernels.triton.gpu import Gpu
from ernie_local.kernels.triton.tile_shape import PageShape, shapes_of_bank
from ernie_local.packing import PageLayout

# More tokens than these share what is read of an expert.
MOST_ONE_BY_ONE = 8
_COLUMNS_OF_SUM = 256

Tensor = torch.Tensor


def add_packed_experts(
    output: Tensor,
    hidden: Tensor,
    slots: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    shared_page: Tensor | None,
    places: Tensor | None,
    layouts: Sequence[PageLayout],
    shared_layout: PageLayout | None,
    gpu: Gpu,
) -> None:
    """As the operator of this name, on one GPU, for pages of the given layouts.

    layouts: all that the experts of this call may have; a page of another one makes its tokens NaN.
    shared_layout: of shared_page. More tokens than MOST_ONE_BY_ONE are rounded to the GPU's dtype, fewer are
    multiplied in float32. Raises UsageError for layouts of several sizes.
    """
    num_tokens, top_k = expert_ids.shape
    if not num_tokens:
        return
    shapes = shapes_of_bank(layouts)
    hidden, expert_ids, weights = hidden.contiguous(), expert_ids.contiguous(), weights.contiguous()
    parts, positions = _compute(hidden, slots, expert_ids, places, shapes, gpu)
    shared_parts, shared_shapes = None, shapes
    if shared_page is not None:
        assert shared_layout is not None, "a shared page has a layout"
        shared_shapes = shapes_of_bank([shared_layout])
        only = torch.zeros(num_tokens, 1, dtype=torch.int64, device=hidden.device)
        # One choice a token: sorted by expert, they are in order of tokens as before.
        shared_parts, _ = _compute(hidden, shared_page, only, None, shared_shapes, gpu)
    hidden_size = hidden.shape[1]
    add_choices[(num_tokens, triton.cdiv(hidden_size, _COLUMNS_OF_SUM))](
        output,
        parts,
        positions,
        slots,
        expert_ids,
        places,
        weights,
        shared_parts,
        shared_page,
        HIDDEN_SIZE=hidden_size,
        TOP_K=top_k,
        CHOICES=triton.next_power_of_2(top_k),
        SLOT_BYTES=slots.shape[1],
        HEADERS=_headers(shapes),
        SHARED_HEADERS=_headers(shared_shapes),
        COLUMNS=_COLUMNS_OF_SUM,
    )


def _compute(
    hidden: Tensor,
    slots: Tensor,
    expert_ids: Tensor,
    places: Tensor | None,
    shapes: Sequence[PageShape],
    gpu: Gpu,
) -> tuple[Tensor, Tensor | None]:
    """What each choice's expert makes of its token, and in which row that lies if not in its own."""
    if len(hidden) <= MOST_ONE_BY_ONE:
        return experts_of_one(hidden, slots, expert_ids, places, shapes), None
    return experts_of_many(hidden, slots, expert_ids, places, shapes, gpu)


def _headers(shapes: Sequence[PageShape]) -> tuple[tuple[int, int], ...]:
    return tuple((shape.header_low, shape.header_high) for shape in shapes)
