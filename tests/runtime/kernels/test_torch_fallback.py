"""Packed weights by plain torch, as on a GPU without Triton: right, in little memory, on their own device.

There is no GPU here. With `meta` as torch's default device every tensor that is made without naming a device
would have no values, and whatever it meets would fail.
"""

from __future__ import annotations

import pytest
import torch

from ernie_local.errors import DoesNotFit
from ernie_local.experts.gpu_math import TorchPageMath
from ernie_local.experts.page_math import PackedPageMath
from ernie_local.kernels import cuda_ops, reference
from ernie_local.loading.options import find_device
from ernie_local.model.moe import RoutedTokens
from ernie_local.packing import find_format, pack_matrix, pack_page, unpack_matrix
from tests.runtime.random_matrices import random_matrix, random_page

HIDDEN, INNER = 64, 32
FORMATS = ["w8", "w4", "w3", "w2", "w2l"]


@pytest.mark.parametrize("name", FORMATS)
def test_matrices_are_multiplied_piece_by_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, tokens = pack_matrix(random_matrix(name, 75, HIDDEN)), torch.randn(3, HIDDEN)
    row_ids = torch.tensor([74, 3])
    whole = reference.packed_linear(tokens, packed, find_format(name), 75)
    sizes: list[int] = []
    unpack = unpack_matrix

    def noted(packed: torch.Tensor, *arguments: object) -> object:
        sizes.append(len(packed))
        return unpack(packed, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "unpack_matrix", noted)
    monkeypatch.setattr(reference, "_MOST_UNPACKED", 2 * 16 * HIDDEN)
    with torch.device("meta"):
        assert torch.equal(cuda_ops._packed_linear(tokens, packed, name, 75), whole)
        assert max(sizes) == 2 * find_format(name).tile_bytes(HIDDEN)
        rows = cuda_ops._packed_rows(row_ids, packed, name, 75, HIDDEN)
    assert torch.equal(rows, reference.packed_rows(row_ids, packed, find_format(name), HIDDEN))
    assert rows.device.type == "cpu"


@pytest.mark.parametrize("name", FORMATS)
def test_experts_are_those_of_the_processor(name: str) -> None:
    torch.manual_seed(0)
    pages = [pack_page(random_page(name, name, HIDDEN, INNER, seed)) for seed in range(4)]
    memory = torch.cat(pages).view(-1, 4096)
    units = len(pages[0]) // 4096
    places = torch.tensor([2 * units, -1, 0, units])
    ids, weights = torch.tensor([[0, 1], [3, 2]]), torch.rand(2, 2)
    shared = pages[3][None]
    tokens = RoutedTokens(0, "text", torch.randn(2, HIDDEN), ids, weights, shared)
    expected = torch.zeros(2, HIDDEN)
    PackedPageMath().add(expected, memory, tokens, places)
    output = torch.zeros(2, HIDDEN)
    with torch.device("meta"):
        TorchPageMath().add(output, memory, tokens, places)
    # The processor rounds tokens to int8.
    assert float((output - expected).norm() / expected.norm()) < 0.05
    through_operator = torch.zeros(2, HIDDEN)
    cuda_ops._add_packed_experts(
        through_operator, tokens.hidden, memory, ids, tokens.expert_weights, shared, places
    )
    assert torch.equal(through_operator, output)


def test_apple_gpus_are_refused_with_the_reason() -> None:
    with pytest.raises(DoesNotFit, match=r"device 'mps' asked for.*\nthere is no code") as caught:
        find_device("mps")
    assert caught.value.exit_code == 3
