"""Computes packed experts: `packed_experts`, `add_packed_experts`, and `packed_gated_mlp` for all tokens.

On a GPU the operators read the headers of their pages back, once a call, so that the host waits. Whoever
knows the layouts beforehand calls `add_by_triton` or `packed_gated_mlp`, and nothing is read. Values of ids
and places are not checked on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.kernels import gpu
from ernie_local.kernels.arguments import (
    ABSENT_SLOT,
    SHARED_EXPERT,
    ExpertsCall,
    LowRankExperts,
    broken_page,
    broken_token,
    check_tokens,
    describe_tensor,
)
from ernie_local.kernels.native import BROKEN_PAGE, BROKEN_TOKEN, DONE
from ernie_local.kernels.operators import native_or_reference, needs_no_dispatch, register
from ernie_local.kernels.reference import add_plain_experts, plain_experts
from ernie_local.packing import TILE_ROWS, PageLayout
from ernie_local.packing.formats import COLUMN_STEP
from ernie_local.packing.layout import HEADER, HEADER_BYTES, read_header
from ernie_local.packing.page import is_foreign_page

_OP = "packed_experts"


def packed_experts(call: ExpertsCall) -> Tensor:
    """The weighted sum of each token's experts, whose pages may be of different formats.

    Pages in other libraries' formats are computed by plain torch, one expert after the other. Returns
    (tokens, hidden_size) in hidden's dtype. Raises UsageError or ModelUnusable, with the argument's name.
    """
    if needs_no_dispatch(call.hidden):
        return _experts_cpu(call)
    output: Tensor = torch.ops.ernie_local.packed_experts(*call)
    return output


def add_packed_experts(output: Tensor, call: ExpertsCall) -> None:
    """Add to `output`, (tokens, hidden_size) float32, what `packed_experts` would give.

    Experts are added one after the other, by their ids, the shared one last: a sum made in several calls,
    each with some experts absent, is the same as that of one, to the bit.
    """
    if needs_no_dispatch(call.hidden):
        _add_experts_cpu(output, call)
    else:
        torch.ops.ernie_local.add_packed_experts(output, *call)


def packed_gated_mlp(
    hidden: Tensor,
    page: Tensor,
    layout: PageLayout,
    gpu_kernels: str = "auto",
    adapter: LowRankExperts | None = None,
) -> Tensor:
    """down(silu(gate(x)) * up(x)) of one page, (1, page_bytes) uint8, for every token.

    hidden: (tokens, hidden_size) -> the same shape. layout: of the page, so that nothing is read back from a
    GPU. adapter: of one expert.
    """
    only = torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device)
    call = ExpertsCall(hidden, page, only, hidden.new_ones(len(hidden), 1), adapter=adapter)
    return packed_experts(call) if hidden.is_cpu else gated_mlp_on_gpu(call, layout, gpu_kernels)


def add_by_triton(
    output: Tensor, call: ExpertsCall, layouts: Sequence[PageLayout], shared_layout: PageLayout | None
) -> None:
    """`add_packed_experts` on a GPU by the Triton kernels. Nothing waits for the GPU.

    layouts: all that the call's pages may have; a page of another one makes its tokens NaN. shared_layout: of
    the shared page. DoesNotFit where the kernels cannot run.
    """
    from ernie_local.kernels.triton.experts import add_experts

    if call.adapter is not None or call.shared_adapter is not None:
        raise DoesNotFit(
            f"{_OP}: an adapter with Triton's kernels on {call.hidden.device}, which have no place for one",
            "they multiply packed weights alone",
            f"use {parameter('gpu_kernels', 'torch')}, or bake it in with `ernie-local quantize --lora`",
        )
    add_experts(output, call, layouts, shared_layout, gpu.require_triton(call.hidden.device))


def _check_experts(call: ExpertsCall) -> None:
    """Raise UsageError unless the arguments belong together.

    Ids and places are looked at on the CPU alone: the host would have to wait for a GPU.
    """
    hidden, slots, places, shared_page = call.hidden, call.slots, call.places, call.shared_page
    check_tokens(_OP, "hidden", hidden)
    if shared_page is not None and (
        shared_page.dtype != torch.uint8 or shared_page.ndim != 2 or len(shared_page) != 1
    ):
        raise UsageError(
            f"{_OP}: shared_page is {describe_tensor(shared_page)}, wanted uint8 (1, bytes)",
            "it is the page of one expert",
            "pass the page as a row of bytes",
        )
    if hidden.shape[1] < COLUMN_STEP or hidden.shape[1] % COLUMN_STEP:
        raise UsageError(
            f"{_OP}: hidden is {hidden.shape[1]} wide, wanted a multiple of {COLUMN_STEP}",
            "no page has such a width",
            "pass hidden states of the model that the pages belong to",
        )
    if slots.dtype != torch.uint8 or slots.ndim != 2 or slots.device != hidden.device:
        raise UsageError(
            f"{_OP}: slots is {slots.dtype} {tuple(slots.shape)} on {slots.device}, "
            f"wanted uint8 (slots, bytes) on {hidden.device}",
            "an expert's page begins at a slot",
            "pass the memory that holds the pages as one tensor",
        )
    wanted = (hidden.shape[0], call.expert_ids.shape[-1] if call.expert_ids.ndim else 0)
    named = (("expert_ids", call.expert_ids, torch.int64), ("weights", call.weights, hidden.dtype))
    for name, tensor, dtype in named:
        if tensor.dtype != dtype or tuple(tensor.shape) != wanted or not tensor.numel():
            raise UsageError(
                f"{_OP}: {name} is {tensor.dtype} {tuple(tensor.shape)}, wanted {dtype} {wanted}",
                "every token names its experts, and a weight for each",
                "pass the router's choices as they are",
            )
    if places is not None and (places.dtype != torch.int64 or places.ndim != 1 or not len(places)):
        raise UsageError(
            f"{_OP}: places is {describe_tensor(places)}, wanted int64 (experts,), at least 1",
            "it says where each expert's page begins",
            "pass one place for each expert of the bank",
        )
    if hidden.is_cpu:
        if places is not None:
            _check_ids("places", places, ABSENT_SLOT, slots.shape[0])
        num_experts = slots.shape[0] if places is None else len(places)
        _check_ids("expert_ids", call.expert_ids, 0, num_experts)
        _check_adapter("adapter", call.adapter, hidden.shape[1], num_experts)
        _check_adapter("shared_adapter", call.shared_adapter, hidden.shape[1], 1)


def _check_adapter(name: str, tables: Sequence[Tensor] | None, hidden_size: int, num_experts: int) -> None:
    """tables: as LowRankExperts."""
    if tables is None:
        return
    ranks = [one.shape[1] if one.ndim == 3 else -1 for one in tables[::2]]
    inner_size = tables[2].shape[-1]
    experts = len(tables[0])
    shapes = [
        (experts, ranks[0], hidden_size),
        (experts, -(-inner_size // TILE_ROWS), ranks[0], TILE_ROWS),
        (experts, ranks[1], inner_size),
        (experts, -(-hidden_size // TILE_ROWS), ranks[1], TILE_ROWS),
    ]
    has_shapes = [tuple(one.shape) for one in tables] == shapes and ranks[0] % 2 == 0
    if not has_shapes or experts != num_experts or any(one.dtype != torch.bfloat16 for one in tables):
        found = ", ".join(describe_tensor(one) for one in tables)
        raise UsageError(
            f"{_OP}: {name} is of {experts} experts ({found}), wanted bfloat16 tables of {num_experts} "
            f"experts of hidden size {hidden_size}",
            "what is added to an expert has the shapes of its matrices",
            "pass tables that were made for this bank",
        )


def _check_ids(name: str, ids: Tensor, lowest: int, end: int) -> None:
    found = (int(ids.min()), int(ids.max()))
    if found[0] < lowest or found[1] >= end:
        raise UsageError(
            f"{_OP}: {name} holds {found[0] if found[0] < lowest else found[1]}, "
            f"there are {lowest} to {end - 1}",
            "there is no such expert, or no such place",
            "pass ids within the bank",
        )


def _check_sum(output: Tensor, call: ExpertsCall) -> None:
    _check_experts(call)
    if output.dtype != torch.float32 or output.shape != call.hidden.shape or not output.is_contiguous():
        raise UsageError(
            f"{_OP}: output is {describe_tensor(output)}, wanted torch.float32 {tuple(call.hidden.shape)}",
            "experts are added in float32, whatever the tokens are",
            "begin with zeros, and convert the sum at the end",
        )


def _exact(call: ExpertsCall) -> ExpertsCall:
    return call._replace(hidden=call.hidden.float(), weights=call.weights.float())


def _experts_cpu(call: ExpertsCall) -> Tensor:
    if call.hidden.dtype != torch.float32:
        _check_experts(call)
        return _experts_cpu(_exact(call)).to(call.hidden.dtype)
    return native_or_reference(_experts_native, _check_experts, plain_experts, call)


def _experts_native(module: ModuleType, call: ExpertsCall) -> Tensor | None:
    output = torch.empty_like(call.hidden)
    outcome, index = module.packed_experts(*call, output, False)
    if outcome == DONE:
        return output
    if outcome == BROKEN_PAGE:  # what it has not computed is not written either
        output.zero_()
    return output if _is_computed(outcome, index, output, call) else None


def _add_experts_cpu(output: Tensor, call: ExpertsCall) -> None:
    if call.hidden.dtype != torch.float32:
        _check_sum(output, call)
        call = _exact(call)
    native_or_reference(_add_experts_native, _check_sum, add_plain_experts, output, call)


def _add_experts_native(module: ModuleType, output: Tensor, call: ExpertsCall) -> bool | None:
    outcome, index = module.packed_experts(*call, output, True)
    return outcome == DONE or _is_computed(outcome, index, output, call) or None


def _is_computed(outcome: int, index: int, output: Tensor, call: ExpertsCall) -> bool:
    """Have plain torch compute what the compiled kernels left to it; False where they refused the call."""
    if outcome == BROKEN_TOKEN:
        raise broken_token(_OP, "hidden", index)
    if outcome != BROKEN_PAGE:
        return False
    slot = index if index == SHARED_EXPERT or call.places is None else int(call.places[index])
    if index == SHARED_EXPERT or not is_foreign_page(call.slots[slot]):
        raise broken_page(_OP, index, call.hidden.shape[1])
    # Routed experts in plain torch, the shared page as fast as ever.
    add_plain_experts(output, call._replace(shared_page=None, shared_adapter=None))
    if call.shared_page is not None:
        only, ones = torch.zeros_like(call.expert_ids[:, :1]), torch.ones_like(call.weights[:, :1])
        _add_experts_cpu(
            output,
            ExpertsCall(
                call.hidden, call.shared_page, only, ones, are_few=call.are_few, adapter=call.shared_adapter
            ),
        )
    return True


def experts_on_gpu(call: ExpertsCall) -> Tensor:
    """`packed_experts` on a GPU: by Triton, or by plain torch without it."""
    output = torch.zeros_like(call.hidden, dtype=torch.float32, memory_format=torch.contiguous_format)
    add_experts_on_gpu(output, call)
    return output.to(call.hidden.dtype)


def add_experts_on_gpu(output: Tensor, call: ExpertsCall) -> None:
    """`add_packed_experts` on a GPU: by Triton, or by plain torch without it."""
    _check_sum(output, call)
    if gpu.find_triton(call.hidden.device) is None:
        add_plain_experts(output, _exact(call))
        return
    ids = call.expert_ids.flatten()
    page = call.shared_page
    shared = [] if page is None else read_layouts(page, torch.zeros_like(ids[:1]))
    # Where no expert is present the shared page's layout serves: nothing of theirs is computed.
    layouts = read_layouts(call.slots, ids if call.places is None else call.places[ids]) or shared
    if layouts:
        add_by_triton(output, call, layouts, shared[0] if shared else None)


def gated_mlp_on_gpu(call: ExpertsCall, layout: PageLayout, gpu_kernels: str = "auto") -> Tensor:
    """`packed_experts` on a GPU of pages that all have this layout."""
    output = torch.zeros_like(call.hidden, dtype=torch.float32, memory_format=torch.contiguous_format)
    if gpu.find_triton(call.hidden.device, gpu_kernels) is None:
        add_plain_experts(output, _exact(call))
    else:
        add_by_triton(output, call, [layout], None)
    return output.to(call.hidden.dtype)


def read_layouts(slots: Tensor, starts: Tensor) -> list[PageLayout]:
    """Each layout of the pages that begin at these slots of a GPU, once; absent pages have none."""
    first_bytes = starts.clamp(min=0)[:, None] * slots.shape[1]  # (pages, 1)
    headers = slots.flatten()[first_bytes + torch.arange(HEADER_BYTES, device=slots.device)]
    present = headers[starts != ABSENT_SLOT].cpu()  # (pages, HEADER_BYTES)
    different = dict.fromkeys(header.numpy().tobytes()[: HEADER.size] for header in present)
    return [read_header(header.ljust(HEADER_BYTES, b"\0"), "a page on the GPU") for header in different]


_FIELDS = (
    "Tensor hidden, Tensor slots, Tensor expert_ids, Tensor weights, "
    "Tensor? shared_page=None, Tensor? places=None, bool? are_few=None, "
    "Tensor[]? adapter=None, Tensor[]? shared_adapter=None"
)
register(f"packed_experts({_FIELDS}) -> Tensor", (ExpertsCall,), _experts_cpu, experts_on_gpu)
register(
    f"add_packed_experts(Tensor(a!) output, {_FIELDS}) -> ()",
    (None, ExpertsCall),
    _add_experts_cpu,
    add_experts_on_gpu,
    fake=lambda *_: None,
)
