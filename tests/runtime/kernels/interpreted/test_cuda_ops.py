"""What stands between the operators and the kernels, with tensors of the CPU in place of a GPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.kernels import experts, gpu, reference
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall, LayerStorage, NewToken, PackedMatrix
from ernie_local.kernels.attention import attention_on_gpu
from ernie_local.kernels.experts import add_experts_on_gpu, experts_on_gpu, gated_mlp_on_gpu
from ernie_local.kernels.linear import linear_on_gpu, rows_on_gpu
from ernie_local.kernels.triton.device import TritonDevice
from ernie_local.packing import PageLayout, find_format, pack_matrix, pack_page
from tests.runtime.kernel_tolerances import EXACT, FLOAT16, relative_error
from tests.runtime.random_matrices import random_matrix, random_page

HIDDEN, INNER = 64, 32


@pytest.fixture(autouse=True)
def any_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_triton", lambda device, gpu_kernels="auto": TritonDevice())


def pages(*formats: str) -> torch.Tensor:
    return torch.stack([pack_page(random_page(name, name, HIDDEN, INNER)) for name in formats])


def test_experts_of_several_formats_by_their_headers() -> None:
    slots = torch.cat((pages("w2"), pages("w2s")))
    hidden, weights = torch.randn(1, HIDDEN), torch.rand(1, 2)
    ids, shared = torch.tensor([[1, 0]]), pages("w8")
    actual = experts_on_gpu(ExpertsCall(hidden, slots, ids, weights, shared))
    assert (
        relative_error(actual, reference.plain_experts(ExpertsCall(hidden, slots, ids, weights, shared)))
        < EXACT
    )


@pytest.mark.parametrize("shared", [None, "w4"])
def test_where_all_are_absent_only_the_shared_expert_counts(shared: str | None) -> None:
    hidden, ids, weights = torch.randn(1, HIDDEN), torch.tensor([[1, 0]]), torch.rand(1, 2)
    page = None if shared is None else pages(shared)
    places = torch.full((2,), ABSENT_SLOT)
    actual, expected = torch.randn(1, HIDDEN).repeat(2, 1, 1)
    expected = expected.clone()
    add_experts_on_gpu(actual, ExpertsCall(hidden, pages("w2", "w2"), ids, weights, page, places))
    reference.add_plain_experts(expected, ExpertsCall(hidden, pages("w2", "w2"), ids, weights, page, places))
    assert relative_error(actual, expected) < EXACT


def test_a_broken_page_is_refused() -> None:
    slots = pages("w2", "w2")
    slots[1, 0] = 0
    hidden, ids, weights = torch.randn(1, HIDDEN), torch.tensor([[1, 0]]), torch.rand(1, 2)
    with pytest.raises(ModelUnusable, match="a page on the GPU begins with"):
        experts_on_gpu(ExpertsCall(hidden, slots, ids, weights))


def test_a_gated_mlp_reads_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(experts, "read_layouts")
    w8 = find_format("w8")
    hidden, page = torch.randn(3, HIDDEN), pages("w8")
    call = ExpertsCall(hidden, page, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    actual = gated_mlp_on_gpu(call, PageLayout(w8, w8, HIDDEN, INNER))
    assert relative_error(actual, reference.plain_experts(call)) < EXACT


def test_linear_and_rows() -> None:
    w4 = find_format("w4")
    packed = pack_matrix(random_matrix("w4", 40, HIDDEN))
    tokens = torch.randn(3, HIDDEN)
    expected = reference.plain_linear(tokens, PackedMatrix(packed, w4.name, 40))
    assert relative_error(linear_on_gpu(tokens, PackedMatrix(packed, "w4", 40)), expected) < FLOAT16
    row_ids = torch.tensor([39, 1])
    rows = rows_on_gpu(row_ids, PackedMatrix(packed, "w4", 40), HIDDEN)
    torch.testing.assert_close(rows, reference.plain_rows(row_ids, PackedMatrix(packed, w4.name, 0), HIDDEN))


def storage(cache: torch.Tensor) -> LayerStorage:
    keys, values = cache.clone()
    return LayerStorage(keys, values, None, None)


def test_attention() -> None:
    new: list[Any] = [torch.randn(4, 16), torch.randn(2, 16), torch.randn(2, 16), *torch.rand(2, 8)]
    cache = torch.randn(2, 2, 5, 16).half()
    new_token = NewToken(*new)
    actual = attention_on_gpu(new_token, storage(cache), 3)
    expected = reference.plain_attention(new_token, storage(cache), 3)
    assert relative_error(actual, expected) < FLOAT16


def test_wrong_arguments_are_refused_by_name() -> None:
    packed = pack_matrix(random_matrix("w4", 40, HIDDEN))
    with pytest.raises(ModelUnusable, match="packed_linear: packed is"):
        linear_on_gpu(torch.randn(3, HIDDEN), PackedMatrix(packed[1:], "w4", 40))
    ids = torch.tensor([[1, 0]])
    with pytest.raises(UsageError, match="packed_experts: weights is"):
        experts_on_gpu(ExpertsCall(torch.randn(1, HIDDEN), pages("w2", "w2"), ids, torch.rand(1, 3)))
