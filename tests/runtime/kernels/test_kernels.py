"""The packed operators against plain torch: every format, every instruction set that this processor has."""

from __future__ import annotations

import multiprocessing
from types import ModuleType

import pytest
import torch
from torch.nn.functional import silu

from ernie_local.errors import ErnieLocalError, ModelUnusable
from ernie_local.kernels import native, reference
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall, PackedMatrix
from ernie_local.kernels.experts import add_packed_experts, packed_experts
from ernie_local.kernels.linear import packed_linear, packed_rows
from ernie_local.packing import FORMATS, LowBitFormat, dequantize, pack_matrix, pack_page, unpack_page
from ernie_local.packing.page import read_layout
from tests.runtime.random_matrices import random_matrix, random_page

LARGEST_ERROR = 1e-2  # of the output's size: activations are rounded to int8
FEW_TOKENS = 16  # up to so many, an expert's inner activations are rounded twice
MODULE = native.native_module()
FORMAT_PAIRS = [("w4", "w4"), ("w3", "w2s"), ("w2l", "w2"), ("w8", "w8"), ("w2t", "w2t")]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def rounded(tokens: torch.Tensor, low_bit: LowBitFormat, are_few: bool = False) -> torch.Tensor:
    """Tokens as the kernels see them: int8 by group. After this rounding little may differ.

    AVX2 adds products with `w8` of columns 8i + {0, 1, 4, 5} and of 8i + {2, 3, 6, 7} in 16 bits, except in
    experts of few tokens.
    """
    padding = -tokens.shape[1] % low_bit.group_size
    groups = torch.nn.functional.pad(tokens, (0, padding)).unflatten(1, (-1, low_bit.group_size))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    if low_bit.name == "w8" and MODULE is not None and MODULE.instruction_set() == "avx2" and not are_few:
        fours = groups.abs().unflatten(-1, (-1, 2, 2, 2)).sum((-3, -1)).flatten(-2)
        scales = scales.maximum(fours.amax(-1, keepdim=True) / 252)
    whole = (groups / scales.clamp(min=1e-30)).round()
    values: torch.Tensor = (whole * scales).flatten(1)[:, : tokens.shape[1]]
    return values


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("num_tokens", "rows", "columns"),
    [
        (1, 16, 16),
        (1, 40, 144),
        (2, 16, 128),
        (3, 33, 272),
        (5, 64, 64),
        (13, 48, 528),
        (25, 16, 1104),
        (131, 40, 80),
    ],
)
def test_linear_is_the_product_with_the_dequantized_matrix(
    kernels: ModuleType, name: str, num_tokens: int, rows: int, columns: int
) -> None:
    matrix = random_matrix(name, rows, columns, seed=rows)
    packed = pack_matrix(matrix)
    tokens = torch.randn(num_tokens, columns, generator=torch.Generator().manual_seed(1))
    tokens[:, ::7] *= 5
    actual = packed_linear(tokens, PackedMatrix(packed, name, rows))
    assert actual.shape == (num_tokens, rows)
    # Beyond the rounding of the tokens nothing is lost.
    expected = reference.plain_linear(rounded(tokens, matrix.low_bit), PackedMatrix(packed, name, rows))
    assert relative_error(actual, expected) < 1e-4


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_tokens_to_int8_costs_less_than_a_hundredth(kernels: ModuleType, name: str) -> None:
    packed = pack_matrix(random_matrix(name, 128, 512))
    tokens = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    exact = reference.plain_linear(tokens, PackedMatrix(packed, name, 128))
    assert relative_error(packed_linear(tokens, PackedMatrix(packed, name, 128)), exact) < LARGEST_ERROR


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_tokens", [1, 4, 29])
@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids="-".join)
def test_experts_are_the_weighted_sum_of_gated_products(
    kernels: ModuleType, formats: tuple[str, str], num_tokens: int, num_threads: int
) -> None:
    slots = torch.stack([pack_page(random_page(*formats, 80, 48, seed)) for seed in range(7)])
    hidden, expert_ids, weights = random_choices(num_tokens, 80, num_experts=7, top_k=3)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        actual = packed_experts(ExpertsCall(hidden, slots, expert_ids, weights))
        assert kernels.num_threads() == num_threads
        again = packed_experts(ExpertsCall(hidden, slots, expert_ids, weights))
    finally:
        torch.set_num_threads(before)
    exact = reference.plain_experts(ExpertsCall(hidden, slots, expert_ids, weights))
    assert relative_error(actual, exact) < 2 * LARGEST_ERROR  # few columns, so little evens out
    expected = rounded_experts(hidden, slots, expert_ids, weights)
    assert relative_error(actual, expected) < 1e-3
    assert torch.equal(actual, again)


@pytest.mark.parametrize("name", FORMATS)
def test_experts_of_many_columns_are_within_a_hundredth(kernels: ModuleType, name: str) -> None:
    """Over some tokens; a single one may be off by a fifth more. Many tokens are rounded once less."""
    slots = torch.stack([pack_page(random_page(name, name, 512, 256, seed)) for seed in range(3)])
    for num_tokens, limit in ((FEW_TOKENS, LARGEST_ERROR), (FEW_TOKENS + 1, 2 * LARGEST_ERROR)):
        hidden, expert_ids, weights = random_choices(num_tokens, 512, num_experts=3, top_k=2)
        exact = reference.plain_experts(ExpertsCall(hidden, slots, expert_ids, weights))
        assert relative_error(packed_experts(ExpertsCall(hidden, slots, expert_ids, weights)), exact) < limit


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_a_token_may_name_an_expert_twice(kernels: ModuleType, num_tokens: int) -> None:
    slots = torch.stack([pack_page(random_page("w4", "w4", 80, 48, seed)) for seed in range(3)])
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(num_tokens, 80, generator=generator)
    weights = torch.rand(num_tokens, 3, generator=generator)
    expert_ids = torch.tensor([[2, 0, 2]]).repeat(num_tokens, 1)
    # What an earlier call left must not be read.
    packed_experts(
        ExpertsCall(torch.randn(5, 80), slots, torch.tensor([[1, 2]]).repeat(5, 1), torch.ones(5, 2))
    )
    exact = reference.plain_experts(ExpertsCall(hidden, slots, expert_ids, weights))
    assert (
        relative_error(packed_experts(ExpertsCall(hidden, slots, expert_ids, weights)), exact)
        < 2 * LARGEST_ERROR
    )


def rounded_experts(
    hidden: torch.Tensor, slots: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The reference with tokens and inner activations rounded where the kernels round them."""
    output = torch.zeros_like(hidden)
    are_few = len(hidden) <= FEW_TOKENS
    for slot in expert_ids.unique().tolist():
        page = unpack_page(slots[slot][: read_layout(slots[slot], allow_padding=True).page_bytes])
        gate, up, down = (dequantize(matrix) for matrix in (page.gate, page.up, page.down))
        token_ids, choices = (expert_ids == slot).nonzero(as_tuple=True)
        chosen = rounded(hidden[token_ids], page.gate.low_bit, are_few)
        exact = silu(chosen @ gate.T) * (chosen @ up.T)
        inner = rounded(exact, page.down.low_bit, are_few)
        if are_few:
            inner += rounded(exact - inner, page.down.low_bit, are_few)  # the rest goes in as well
        output.index_add_(0, token_ids, inner @ down.T * weights[token_ids, choices, None])
    return output


def random_choices(
    num_tokens: int, hidden_size: int, num_experts: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator)
    expert_ids = torch.rand(num_tokens, num_experts, generator=generator).topk(top_k).indices
    weights = torch.rand(num_tokens, top_k, generator=generator)
    return hidden, expert_ids, weights / weights.sum(-1, keepdim=True)


def test_pages_of_different_formats_lie_side_by_side(kernels: ModuleType) -> None:
    pages = [
        pack_page(random_page(*pair, 128, 64, 1)) for pair in (("w4", "w8"), ("w2", "w3"), ("w2l", "w4"))
    ]
    slots = torch.zeros(3, max(len(page) for page in pages) + 4096, dtype=torch.uint8)
    for slot, page in zip(slots, pages, strict=True):
        slot[: len(page)] = page
    hidden, expert_ids, weights = random_choices(6, 128, num_experts=3, top_k=2)
    expected = rounded_experts(hidden, slots, expert_ids, weights)
    assert relative_error(packed_experts(ExpertsCall(hidden, slots, expert_ids, weights)), expected) < 1e-3


@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 3, 20])
def test_a_sum_made_in_parts_is_that_of_one_call(
    monkeypatch: pytest.MonkeyPatch, with_native: bool, num_tokens: int
) -> None:
    """Pages begin anywhere, and take several slots; experts without a place are left out."""
    choose_code(monkeypatch, with_native)
    pages = torch.stack([pack_page(random_page("w4", "w2", 80, 48, seed)) for seed in range(4)])
    units = torch.cat((torch.zeros(1, 64, dtype=torch.uint8), pages.flip(0).view(-1, 64)))
    places = 1 + torch.arange(3, -1, -1) * (pages.shape[1] // 64)
    hidden, expert_ids, weights = random_choices(num_tokens, 80, num_experts=4, top_k=3)
    whole = packed_experts(ExpertsCall(hidden, pages, expert_ids, weights, pages[:1]))
    output = torch.zeros_like(hidden)
    for present in (torch.tensor([True, True, False, False]), torch.tensor([False, False, True, True])):
        some = places.where(present, ABSENT_SLOT)
        shared = pages[:1] if present[3] else None
        add_packed_experts(output, ExpertsCall(hidden, units, expert_ids, weights, shared, some))
    assert torch.equal(output, whole)
    nowhere = torch.full((4,), ABSENT_SLOT)
    add_packed_experts(output, ExpertsCall(hidden, units, expert_ids, weights, None, nowhere))
    assert torch.equal(output, whole)
    with pytest.raises(ModelUnusable, match="the slot of expert 0 holds no page"):  # it ends too early
        add_packed_experts(
            output, ExpertsCall(hidden, units[: -pages.shape[1] // 128], expert_ids, weights, None, places)
        )


@pytest.mark.parametrize("with_native", [True, False])
def test_choices_of_a_token_may_be_added_up_elsewhere(
    monkeypatch: pytest.MonkeyPatch, with_native: bool
) -> None:
    choose_code(monkeypatch, with_native)
    pages = torch.stack([pack_page(random_page("w2", "w4", 80, 48, seed)) for seed in range(4)])
    hidden, expert_ids, weights = random_choices(1, 80, num_experts=4, top_k=3)
    rows = packed_experts(ExpertsCall(hidden.repeat(3, 1), pages, expert_ids.view(3, 1), weights.view(3, 1)))
    output = torch.zeros(1, 80)
    for choice in expert_ids[0].argsort():
        output += rows[choice]
    assert torch.equal(output, packed_experts(ExpertsCall(hidden, pages, expert_ids, weights)))


@pytest.mark.parametrize(("few", "many"), [(1, FEW_TOKENS), (FEW_TOKENS + 1, 30)])
def test_a_token_gets_the_same_among_few_and_among_more(kernels: ModuleType, few: int, many: int) -> None:
    """On either side of the number of tokens from which on inner activations are rounded once only."""
    slots = torch.stack([pack_page(random_page("w4", "w2", 64, 64, seed)) for seed in range(5)])
    hidden, expert_ids, weights = random_choices(many, 64, num_experts=5, top_k=2)
    together = packed_experts(ExpertsCall(hidden, slots, expert_ids, weights))
    for first in (0, 3, many - few):
        rows = slice(first, first + few)
        apart = packed_experts(ExpertsCall(hidden[rows], slots, expert_ids[rows], weights[rows]))
        assert relative_error(apart, together[rows]) < 1e-6


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e30, -1e35])
def test_extreme_activations(kernels: ModuleType, value: float) -> None:
    packed = pack_matrix(random_matrix("w4", 16, 128))
    tokens = torch.zeros(2, 128)
    tokens[0, 3] = value
    actual = packed_linear(tokens, PackedMatrix(packed, "w4", 16))
    expected = reference.plain_linear(tokens, PackedMatrix(packed, "w4", 16))
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-30)
    assert not actual[1].any()


def test_codes_and_activations_at_their_ends_do_not_overflow(kernels: ModuleType) -> None:
    """Every code, scale and column at its highest: pairs of 16-bit sums would saturate if they could."""
    for name, low_bit in FORMATS.items():
        matrix = random_matrix(name, 16, 256)
        matrix.codes.fill_(low_bit.highest_code)
        if matrix.zeros is not None:
            matrix.zeros.zero_()
        packed = pack_matrix(matrix)
        for sign in (1.0, -1.0):
            tokens = torch.full((9, 256), sign * 3.0)
            expected = reference.plain_linear(tokens, PackedMatrix(packed, low_bit.name, 16))
            assert relative_error(packed_linear(tokens, PackedMatrix(packed, name, 16)), expected) < 1e-4, (
                name
            )
    matrix.codes.zero_()  # w8: -128
    packed = pack_matrix(matrix)
    expected = reference.plain_linear(tokens, PackedMatrix(packed, low_bit.name, 16))
    assert relative_error(packed_linear(tokens, PackedMatrix(packed, name, 16)), expected) < 1e-4


def test_bfloat16_goes_in_and_comes_out(kernels: ModuleType) -> None:
    packed = pack_matrix(random_matrix("w4", 32, 64))
    tokens = torch.randn(3, 64).bfloat16()
    actual = packed_linear(tokens, PackedMatrix(packed, "w4", 32))
    expected = reference.plain_linear(tokens.float(), PackedMatrix(packed, "w4", 32))
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual.float(), expected) < 2 * LARGEST_ERROR


@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("columns", [16, 144, 336])
def test_rows_are_the_dequantized_matrix(
    monkeypatch: pytest.MonkeyPatch, with_native: bool, name: str, columns: int
) -> None:
    choose_code(monkeypatch, with_native)
    matrix = random_matrix(name, 40, columns)
    scales = matrix.scales if matrix.row_scales is None else matrix.row_scales
    scales.view(-1)[::5] = 3e-6  # fp16 without its hidden bit
    scales.view(-1)[::7] = -0.0
    row_ids = torch.tensor([39, 0, 17, 0, 16, 15])
    actual = packed_rows(row_ids, PackedMatrix(pack_matrix(matrix), name, 40), columns)
    torch.testing.assert_close(actual, dequantize(matrix)[row_ids], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize(
    ("row_ids", "message"),
    [
        (torch.tensor([3, 32]), "packed_rows: row_ids holds 32, rows are 0 to 31"),
        (torch.tensor([-1]), "row_ids holds -1, rows are 0 to 31"),
        (torch.tensor([[1]]), r"row_ids is torch.int64 \(1, 1\)"),
        (torch.tensor([1.0]), "row_ids is torch.float32"),
        (torch.tensor([], dtype=torch.int64), r"row_ids is torch.int64 \(0,\)"),
    ],
)
def test_rows_refuse(
    monkeypatch: pytest.MonkeyPatch, with_native: bool, row_ids: torch.Tensor, message: str
) -> None:
    choose_code(monkeypatch, with_native)
    with pytest.raises(ErnieLocalError, match=message):
        packed_rows(row_ids, PackedMatrix(PACKED, "w4", 32), 64)
    with pytest.raises(ErnieLocalError, match="takes 1728 bytes"):
        packed_rows(torch.tensor([1]), PackedMatrix(PACKED, "w4", 48), 64)


def test_operators_keep_the_rules_of_torch() -> None:
    packed = pack_matrix(random_matrix("w4", 32, 64))
    torch.library.opcheck(torch.ops.ernie_local.packed_linear, (torch.randn(3, 64), packed, "w4", 32))
    torch.library.opcheck(
        torch.ops.ernie_local.packed_rows, (torch.tensor([3, 30]), packed, "w4", 32, "auto", 64)
    )
    slots = torch.stack([pack_page(random_page("w4", "w2", 64, 64, seed)) for seed in range(4)])
    hidden, expert_ids, weights = random_choices(3, 64, num_experts=4, top_k=2)
    torch.library.opcheck(torch.ops.ernie_local.packed_experts, (hidden, slots, expert_ids, weights))
    sum_and_all = (torch.zeros(3, 64), hidden, slots, expert_ids, weights, slots[:1], torch.arange(4))
    torch.library.opcheck(torch.ops.ernie_local.add_packed_experts, sum_and_all)


PACKED = pack_matrix(random_matrix("w4", 32, 64))
SLOTS = torch.stack([pack_page(random_page("w4", "w4", 64, 64, seed)) for seed in range(4)])


@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(0, 64), PACKED, "w4", 32), r"packed_linear: tokens is .*\(0, 64\).* at least 1 token"),
        ((torch.zeros(64), PACKED, "w4", 32), r"tokens is torch.float32 \(64,\)"),
        ((torch.zeros(1, 64).int(), PACKED, "w4", 32), "tokens is torch.int32"),
        ((torch.zeros(1, 64), PACKED, "w5", 32), "'w5' is not one of the formats w4"),
        (
            (torch.zeros(1, 72), PACKED, "w4", 32),
            "32 x 72 cannot be packed: columns must be a multiple of 16",
        ),
        (
            (torch.zeros(1, 64), PACKED, "w4", 48),
            r"\(1152,\) on cpu, a w4 matrix of 48 x 64 takes 1728 bytes",
        ),
        (
            (torch.zeros(1, 64), PACKED[:-1], "w4", 32),
            r"\(1151,\) on cpu, a w4 matrix of 32 x 64 takes 1152 bytes",
        ),
        (
            (torch.tensor([[torch.nan] * 64]), PACKED, "w4", 32),
            "tokens holds a NaN or an infinity in token 0",
        ),
        ((torch.eye(5, 64) * torch.inf, PACKED, "w4", 32), "tokens holds a NaN or an infinity in token 0"),
    ],
)
def test_linear_refuses(
    monkeypatch: pytest.MonkeyPatch, with_native: bool, arguments: tuple[object, ...], message: str
) -> None:
    choose_code(monkeypatch, with_native)
    with pytest.raises(ErnieLocalError, match=message):
        packed_linear(arguments[0], PackedMatrix(*arguments[1:]))  # type: ignore[arg-type]


def broken(slots: torch.Tensor, position: int, value: int) -> torch.Tensor:
    copy = slots.clone()
    copy[2, position] = value
    return copy


def experts_arguments(**changes: object) -> dict[str, object]:
    hidden = torch.ones(2, 64)
    expert_ids = torch.tensor([[0, 1], [2, 3]])
    return {"hidden": hidden, "slots": SLOTS, "expert_ids": expert_ids, "weights": torch.ones(2, 2)} | changes


@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.ones(2, 80)}, "the slot of expert 0 holds no page of hidden size 80"),
        ({"hidden": torch.ones(2, 40)}, "hidden is 40 wide, wanted a multiple of 16"),
        ({"expert_ids": torch.tensor(0)}, r"expert_ids is torch.int64 \(\), wanted torch.int64 \(2, 0\)"),
        ({"slots": SLOTS[0]}, r"slots is torch.uint8 \(\d+,\) on cpu, wanted uint8 \(slots, bytes\)"),
        (
            {"slots": SLOTS[:, :-4096], "expert_ids": torch.full((2, 2), 3)},
            "the slot of expert 3 holds no page of hidden size 64 in full",
        ),
        ({"slots": broken(SLOTS, 0, 0)}, "the slot of expert 2 holds no page"),
        ({"slots": broken(SLOTS, 4, 3)}, "the slot of expert 2 holds no page"),
        ({"slots": broken(SLOTS, 6, 99)}, "the slot of expert 2 holds no page"),
        ({"slots": broken(SLOTS, 13, 99)}, "the slot of expert 2 holds no page"),
        ({"expert_ids": torch.tensor([[0, 1], [2, 4]])}, "expert_ids holds 4, there are 0 to 3"),
        ({"expert_ids": torch.tensor([[0, -1], [2, 3]])}, "expert_ids holds -1, there are 0 to 3"),
        (
            {"expert_ids": torch.tensor([[0, 1]])},
            r"expert_ids is torch.int64 \(1, 2\), wanted torch.int64 \(2, 2\)",
        ),
        ({"weights": torch.ones(2, 3)}, r"weights is torch.float32 \(2, 3\), wanted torch.float32 \(2, 2\)"),
        ({"hidden": torch.full((2, 64), torch.inf)}, "hidden holds a NaN or an infinity in token 0"),
        ({"hidden": torch.full((2, 64), 1e30)}, "hidden holds a NaN or an infinity in token 0"),
    ],
)
def test_experts_refuse(
    monkeypatch: pytest.MonkeyPatch, with_native: bool, changes: dict[str, object], message: str
) -> None:
    choose_code(monkeypatch, with_native)
    with pytest.raises(ErnieLocalError, match=message):
        packed_experts(ExpertsCall(**experts_arguments(**changes)))  # type: ignore[arg-type]


def choose_code(monkeypatch: pytest.MonkeyPatch, with_native: bool) -> None:
    if with_native:
        if MODULE is None:
            pytest.skip("the native module was not built here")
    else:
        monkeypatch.setattr("ernie_local.kernels.operators.native_module", lambda: None)
        monkeypatch.setattr("ernie_local.kernels.operators.warn_without_native", lambda: None)


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    if MODULE is None:
        pytest.skip("the native module was not built here")
    with pytest.raises(ValueError, match="no kernels for instruction set 'mmx' can run here"):
        MODULE.use_instruction_set("mmx")
    with pytest.raises(ValueError, match="at least 1 thread is needed"):
        MODULE.set_num_threads(0)


def _compute_in_child() -> None:
    packed_linear(torch.ones(4, 64), PackedMatrix(PACKED, "w4", 32))


def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    packed_linear(torch.ones(4, 64), PackedMatrix(PACKED, "w4", 32))
    child = multiprocessing.get_context("fork").Process(target=_compute_in_child)
    child.start()
    child.join(timeout=60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert child.exitcode == 0
