"""What adapters add beside packed weights, against plain torch, on every instruction set."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from ernie_local.errors import DoesNotFit, ModelUnusable, UsageError
from ernie_local.kernels import reference
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall, LowRankExperts, LowRankParts
from ernie_local.kernels.experts import add_by_triton, add_packed_experts, packed_experts
from ernie_local.kernels.low_rank import add_low_rank, in_tiles
from ernie_local.packing import pack_page
from ernie_local.packing.foreign import dequantize_foreign
from tests.runtime.kernel_tolerances import EXACT, relative_error
from tests.runtime.random_adapters import low_rank, random_tables
from tests.runtime.random_matrices import random_page

HIDDEN, INNER, EXPERTS = 96, 48, 5
ROUNDED = 2e-2  # of the output's size: inputs and inner activations are rounded to int8


def parts_of(columns: int, *rows: tuple[int, int, int]) -> LowRankParts:
    """rows: first row, number of rows and rank of each part."""
    drawn = [low_rank(count, columns, rank, 7 + first) for first, count, rank in rows]
    inward = [one.rank_by_columns for one in drawn]
    outward = [in_tiles(one.rows_by_rank) for one in drawn]
    return LowRankParts(inward, outward, [first for first, _, _ in rows], [count for _, count, _ in rows])


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 70])
@pytest.mark.parametrize(
    ("columns", "rows"),
    [(64, [(0, 32, 16)]), (50, [(0, 7, 1), (7, 20, 3), (40, 33, 9)]), (131, [(3, 16, 2), (19, 17, 33)])],
)
def test_thin_products_are_added_to_their_rows(
    kernels: ModuleType, columns: int, rows: list[tuple[int, int, int]], num_tokens: int
) -> None:
    parts = parts_of(columns, *rows)
    generator = torch.Generator().manual_seed(num_tokens)
    tokens = torch.randn(num_tokens, columns, generator=generator)
    before = torch.randn(num_tokens, 80, generator=generator)
    expected, actual = before.clone(), before.clone()
    for inward, outward, first, count in zip(*parts, strict=True):
        by_rows = outward.float().transpose(1, 2).flatten(0, 1)[:count]  # (count, rank)
        expected[:, first : first + count] += tokens @ inward.float().T @ by_rows.T
    with torch.no_grad():
        add_low_rank(actual, tokens, parts)
        assert relative_error(actual, expected) < EXACT
        # Rows outside of the parts are untouched, and no token depends on the others.
        inside = {row for first, count, _ in rows for row in range(first, first + count)}
        outside = [row for row in range(80) if row not in inside]
        assert torch.equal(actual[:, outside], before[:, outside])
        alone = before[-1:].clone()
        add_low_rank(alone, tokens[-1:], parts)
        assert torch.equal(alone, actual[-1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_adds_the_same_without_compiled_code(dtype: torch.dtype) -> None:
    parts = parts_of(64, (0, 20, 4), (20, 12, 2))
    tokens, compiled = torch.randn(3, 64), torch.zeros(3, 40)
    with torch.no_grad():
        add_low_rank(compiled, tokens, parts)
        plain = torch.zeros(3, 40, dtype=dtype)
        add_low_rank(plain, tokens.to(dtype), parts)
    assert relative_error(plain.float(), compiled) < (EXACT if dtype == torch.float32 else 2**-6)


def test_the_operator_is_known_to_torch() -> None:
    parts = parts_of(64, (0, 20, 4), (20, 12, 2))
    torch.library.opcheck(
        torch.ops.ernie_local.add_low_rank.default, (torch.zeros(3, 40), torch.randn(3, 64), *parts)
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts._replace(first_rows=[30, 40]),
        lambda parts: parts._replace(outward=[parts.outward[0][:, :2], parts.outward[1]]),
        lambda parts: parts._replace(inward=[parts.inward[0][:, :60], parts.inward[1]]),
        lambda parts: parts._replace(num_rows=[0, 12]),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: object) -> None:
    assert callable(change)
    parts = change(parts_of(64, (0, 20, 4), (20, 12, 2)))
    output = torch.zeros(3, 40)
    with torch.no_grad(), pytest.raises(UsageError, match="add_low_rank: inward is"):
        add_low_rank(output, torch.randn(3, 64), parts)
    assert not output.any()


def pages(seed: int = 0) -> torch.Tensor:
    return torch.stack(
        [pack_page(random_page("w2", "w4", HIDDEN, INNER, seed + expert)) for expert in range(EXPERTS)]
    )


def routed(num_tokens: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, ids of three experts each, and their weights."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:3] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, 3, generator=generator)
    return torch.randn(num_tokens, HIDDEN, generator=generator), ids, weights


def dequantized_sum(call: ExpertsCall, adapter: LowRankExperts, shared: LowRankExperts) -> torch.Tensor:
    """Each expert with its weights as plain matrices, to which the thin products are added."""
    output = torch.zeros_like(call.hidden)
    eye, inner_eye = torch.eye(HIDDEN), torch.eye(INNER)

    def added(matrices: tuple[torch.Tensor, torch.Tensor], rows: int, columns: torch.Tensor) -> torch.Tensor:
        return reference.low_rank_product(columns, *matrices, rows).T

    choices = [(int(one), call.slots[int(one)], adapter) for one in call.expert_ids.unique()]
    assert call.shared_page is not None
    for expert, page, own in [*choices, (0, call.shared_page[0], shared)]:
        layout = reference._read_expert_layout("test", page, expert, HIDDEN)
        gate, up = (
            reference._multiply_expert(eye, page, layout, index, dequantize_foreign).T for index in (0, 1)
        )
        down = reference._multiply_expert(inner_eye, page, layout, 2, dequantize_foreign).T
        for_gate, for_up = own.gate_and_up(expert)
        gate, up = gate + added(for_gate, INNER, eye), up + added(for_up, INNER, eye)
        down = down + added(own.down(expert), HIDDEN, inner_eye)
        if own is shared:
            factors = torch.ones(len(call.hidden))
        else:
            factors = torch.where(call.expert_ids == expert, call.weights, 0.0).sum(1)
        inner = torch.nn.functional.silu(call.hidden @ gate.T) * (call.hidden @ up.T)
        output += inner @ down.T * factors[:, None]
    return output


def adapted_call(num_tokens: int, rank: int = 5) -> ExpertsCall:
    hidden, ids, weights = routed(num_tokens)
    adapter = random_tables(EXPERTS, HIDDEN, INNER, rank)
    shared = random_tables(1, HIDDEN, INNER, 3, seed=1)
    shared_page = pages(20)[:1]
    return ExpertsCall(hidden, pages(), ids, weights, shared_page, adapter=adapter, shared_adapter=shared)


@pytest.mark.parametrize("num_tokens", [1, 3, 17, 40])
def test_experts_compute_with_what_an_adapter_adds(kernels: ModuleType, num_tokens: int) -> None:
    call = adapted_call(num_tokens)
    assert call.adapter is not None
    assert call.shared_adapter is not None
    expected = dequantized_sum(call, LowRankExperts(*call.adapter), LowRankExperts(*call.shared_adapter))
    # An adapter of this size is no detail: without it the result is another one.
    without = reference.plain_experts(call._replace(adapter=None, shared_adapter=None))
    assert relative_error(without, expected) > 0.1
    assert relative_error(reference.plain_experts(call), expected) < EXACT
    assert relative_error(packed_experts(call), expected) < ROUNDED


@pytest.mark.parametrize("names", [["gate_proj"], ["up_proj"], ["down_proj"], ["gate_proj", "down_proj"]])
def test_some_matrices_may_have_nothing_added(kernels: ModuleType, names: list[str]) -> None:
    call = adapted_call(2)._replace(adapter=random_tables(EXPERTS, HIDDEN, INNER, 4, names))
    assert relative_error(packed_experts(call), reference.plain_experts(call)) < ROUNDED


def test_sums_in_parts_are_the_whole_to_the_bit(kernels: ModuleType) -> None:
    call = adapted_call(6)
    whole = packed_experts(call)
    output = torch.zeros_like(whole)
    for some in ((0, 1), (2,), (3, 4)):
        places = torch.tensor([one if one in some else ABSENT_SLOT for one in range(EXPERTS)])
        part = call if 4 in some else call._replace(shared_page=None, shared_adapter=None)
        add_packed_experts(output, part._replace(places=places))
    # Experts of a token are added in the order of their ids in both.
    assert torch.equal(output, whole)
    for row in range(6):
        one = slice(row, row + 1)
        alone = call._replace(
            hidden=call.hidden[one], expert_ids=call.expert_ids[one], weights=call.weights[one]
        )
        assert torch.equal(packed_experts(alone), whole[one])


def test_zeros_change_no_bit(kernels: ModuleType) -> None:
    call = adapted_call(4)
    assert call.adapter is not None
    zeros = LowRankExperts(*(torch.zeros_like(table) for table in call.adapter))
    plain = call._replace(adapter=None, shared_adapter=None)
    assert torch.equal(packed_experts(plain._replace(adapter=zeros)), packed_experts(plain))


def test_the_schema_takes_adapters() -> None:
    torch.library.opcheck(torch.ops.ernie_local.packed_experts.default, tuple(adapted_call(2)))
    output = torch.ops.ernie_local.packed_experts(*adapted_call(2))
    assert torch.equal(output, packed_experts(adapted_call(2)))


def test_tables_of_another_bank_are_refused() -> None:
    call = adapted_call(2)
    with pytest.raises(UsageError, match="adapter is of 4 experts"):
        packed_experts(call._replace(adapter=random_tables(4, HIDDEN, INNER, 2)))
    assert call.adapter is not None
    in_float = call._replace(adapter=[table.float() for table in call.adapter])
    with pytest.raises(UsageError, match=r"adapter is of 5 experts \(torch.float32"):
        packed_experts(in_float)
    with pytest.raises(ModelUnusable, match="holds no page"):
        packed_experts(call._replace(adapter=random_tables(EXPERTS, HIDDEN, 32, 2)))


def test_tritons_kernels_refuse_by_name() -> None:
    with pytest.raises(DoesNotFit, match="Triton's kernels on cpu") as refusal:
        add_by_triton(torch.zeros(1, HIDDEN), adapted_call(1), [], None)
    assert 'gpu_kernels="torch"' in refusal.value.hint
