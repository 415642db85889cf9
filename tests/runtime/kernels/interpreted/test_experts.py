"""Routed and shared experts against plain torch: few tokens and many, mixed formats, absent pages."""

from __future__ import annotations

import pytest
import torch

from ernie_local.errors import UsageError
from ernie_local.kernels import reference
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall
from ernie_local.kernels.triton.device import TritonDevice
from ernie_local.kernels.triton.experts import MOST_ONE_BY_ONE, add_experts
from ernie_local.packing import PageLayout, find_format, pack_page
from tests.runtime.kernel_tolerances import (
    EXACT,
    EXPERTS_BFLOAT16,
    EXPERTS_FLOAT16,
    relative_error,
)
from tests.runtime.random_matrices import random_page

HIDDEN, INNER = 80, 48  # neither is whole groups, whole steps or whole programs
UNIT = 4096
MANY = MOST_ONE_BY_ONE + 4
FORMAT_PAIRS = [("w4", "w4"), ("w2", "w2"), ("w8", "w8"), ("w2", "w2l"), ("w3", "w2s"), ("w2t", "w2t")]


def layout_of(formats: tuple[str, str], hidden_size: int = HIDDEN) -> PageLayout:
    gate_up, down = map(find_format, formats)
    return PageLayout(gate_up, down, hidden_size, INNER)


class Bank:
    """Pages in units of 4096 bytes, some way into a memory; expert i begins at places[i]."""

    def __init__(self, *formats: tuple[str, str], hidden_size: int = HIDDEN) -> None:
        self.layouts = [layout_of(pair, hidden_size) for pair in formats]
        pages = [pack_page(random_page(*pair, hidden_size, INNER, seed)) for seed, pair in enumerate(formats)]
        starts, length = [], 2
        for page in pages:
            starts.append(length)
            length += page.numel() // UNIT + 1
        memory = torch.full((length, UNIT), 0xA5, dtype=torch.uint8)
        for start, page in zip(starts, pages, strict=True):
            memory.view(-1)[start * UNIT : start * UNIT + page.numel()] = page
        self.units, self.places = memory, torch.tensor(starts)


def choices(num_tokens: int, num_experts: int, top_k: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, HIDDEN, generator=generator)
    ids = torch.randint(num_experts, (num_tokens, top_k), generator=generator)
    return hidden, ids, torch.rand(num_tokens, top_k, generator=generator)


def compare(
    bank: Bank,
    num_tokens: int,
    places: torch.Tensor,
    shared: Bank | None = None,
    gpu: TritonDevice | None = None,
) -> float:
    hidden, ids, weights = choices(num_tokens, len(bank.places))
    page, layout = None, None
    if shared is not None:
        page, layout = shared.units[shared.places[0] :].flatten()[None], shared.layouts[0]
    expected = torch.randn(num_tokens, HIDDEN)
    actual = expected.clone()
    reference.add_plain_experts(expected, ExpertsCall(hidden, bank.units, ids, weights, page, places))
    add_experts(
        actual,
        ExpertsCall(hidden, bank.units, ids, weights, page, places),
        bank.layouts,
        layout,
        gpu or TritonDevice(),
    )
    return relative_error(actual, expected)


@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids="-".join)
def test_experts_of_one_token(formats: tuple[str, str]) -> None:
    bank = Bank(formats, formats)
    assert compare(bank, 1, bank.places) < EXACT


@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids="-".join)
def test_experts_of_many_tokens(formats: tuple[str, str]) -> None:
    bank = Bank(formats, formats, formats)
    assert compare(bank, 40, bank.places) < EXPERTS_FLOAT16


@pytest.mark.parametrize("num_tokens", [1, MANY])
def test_formats_of_one_bank_may_differ(num_tokens: int) -> None:
    bank = Bank(("w4", "w4"), ("w2", "w2l"), ("w4", "w8"))
    assert compare(bank, num_tokens, bank.places, Bank(("w8", "w8"))) < EXPERTS_FLOAT16


@pytest.mark.parametrize("num_tokens", [2, MANY])
@pytest.mark.parametrize("absent", [[1], [0, 1, 2]], ids=str)
def test_absent_experts_are_left_out(num_tokens: int, absent: list[int]) -> None:
    bank = Bank(("w2", "w2"), ("w2", "w2"), ("w2", "w2"))
    places = bank.places.clone()
    places[absent] = ABSENT_SLOT
    assert compare(bank, num_tokens, places, Bank(("w2", "w2"))) < EXPERTS_FLOAT16


@pytest.mark.parametrize(
    "gpu", [TritonDevice(torch.bfloat16), TritonDevice(uses_tensor_cores=False)], ids=str
)
def test_other_gpus_compute_the_same(gpu: TritonDevice) -> None:
    bank = Bank(("w4", "w4"), ("w4", "w4"))
    limit = EXPERTS_BFLOAT16 if gpu.dtype == torch.bfloat16 else EXPERTS_FLOAT16
    assert compare(bank, MANY, bank.places, gpu=gpu) < limit


@pytest.mark.parametrize("num_tokens", [1, MANY])
def test_without_places_an_expert_lies_in_its_own_slot(num_tokens: int) -> None:
    pages = torch.stack([pack_page(random_page("w4", "w4", HIDDEN, INNER, seed)) for seed in range(2)])
    layouts = [layout_of(("w4", "w4"))]
    hidden, ids, weights = choices(num_tokens, 2)
    actual, expected = torch.zeros(2, num_tokens, HIDDEN)
    reference.add_plain_experts(expected, ExpertsCall(hidden, pages, ids, weights))
    add_experts(actual, ExpertsCall(hidden, pages, ids, weights, None, None), layouts, None, TritonDevice())
    assert relative_error(actual, expected) < EXPERTS_FLOAT16


def test_a_sum_made_in_several_calls_is_that_of_one_to_the_bit() -> None:
    bank = Bank(("w2", "w2"), ("w2", "w2"), ("w2", "w2"))
    hidden, _, weights = choices(1, 3, top_k=4)
    ids = torch.tensor([[2, 0, 1, 2]])  # in no order, and one of them twice
    start = torch.randn(1, HIDDEN)

    def add(output: torch.Tensor, present: list[int]) -> torch.Tensor:
        places = torch.full((3,), ABSENT_SLOT)
        places[present] = bank.places[present]
        add_experts(
            output,
            ExpertsCall(hidden, bank.units, ids, weights, None, places),
            bank.layouts,
            None,
            TritonDevice(),
        )
        return output

    at_once = add(start.clone(), [0, 1, 2])
    in_turn = add(add(start.clone(), [0, 1]), [2])
    assert torch.equal(at_once, in_turn)
    expected = start.clone()
    reference.add_plain_experts(expected, ExpertsCall(hidden, bank.units, ids, weights, None, bank.places))
    assert relative_error(at_once, expected) < EXACT


@pytest.mark.parametrize("num_tokens", [2, MANY])
def test_a_page_of_an_unknown_layout_makes_its_tokens_nan(num_tokens: int) -> None:
    bank = Bank(("w4", "w4"), ("w2", "w2"))
    hidden, _, weights = choices(num_tokens, 2, top_k=1)
    ids = torch.zeros(num_tokens, 1, dtype=torch.int64)
    ids[-1] = 1
    output = torch.zeros(num_tokens, HIDDEN)
    known = bank.layouts[:1]
    add_experts(
        output, ExpertsCall(hidden, bank.units, ids, weights, None, bank.places), known, None, TritonDevice()
    )
    assert bool(output[-1].isnan().all())
    assert bool(output[:-1].isfinite().all())


@pytest.mark.parametrize("num_tokens", [1, MANY])
def test_large_inner_activations_do_not_overflow(num_tokens: int) -> None:
    bank = Bank(("w4", "w4"))
    hidden, ids, weights = choices(num_tokens, 1)
    hidden *= 300  # their gate times up is some 1e6 and more
    expected, actual = torch.zeros(2, num_tokens, HIDDEN)
    reference.add_plain_experts(expected, ExpertsCall(hidden, bank.units, ids, weights, None, bank.places))
    add_experts(
        actual,
        ExpertsCall(hidden, bank.units, ids, weights, None, bank.places),
        bank.layouts,
        None,
        TritonDevice(),
    )
    assert relative_error(actual, expected) < EXPERTS_FLOAT16


def test_no_tokens_add_nothing() -> None:
    bank = Bank(("w4", "w4"))
    empty = torch.empty(0, HIDDEN)
    ids = torch.empty(0, 2, dtype=torch.int64)
    add_experts(
        empty,
        ExpertsCall(empty, bank.units, ids, torch.empty(0, 2), None, bank.places),
        bank.layouts,
        None,
        TritonDevice(),
    )


def test_layouts_of_two_sizes_are_refused() -> None:
    bank = Bank(("w4", "w4"))
    layouts = [*bank.layouts, *Bank(("w4", "w4"), hidden_size=2 * HIDDEN).layouts]
    hidden, ids, weights = choices(1, 1)
    with pytest.raises(UsageError, match=r"pages of 2 sizes .*\(80, 48\), \(160, 48\)"):
        add_experts(
            hidden.clone(),
            ExpertsCall(hidden, bank.units, ids, weights, None, bank.places),
            layouts,
            None,
            TritonDevice(),
        )
