"""Packed weights by plain torch, as on a GPU without Triton: right, in little memory, on their own device.

There is no GPU here. With `meta` as torch's default device every tensor that is made without naming a device
would have no values, and whatever it meets would fail.
"""

from __future__ import annotations

import pytest
import torch

from ernie_local.errors import DoesNotFit
from ernie_local.experts.math import PageMath, TorchPageMath
from ernie_local.kernels import reference
from ernie_local.kernels.arguments import ExpertsCall, PackedMatrix
from ernie_local.kernels.experts import add_experts_on_gpu
from ernie_local.kernels.linear import linear_on_gpu, rows_on_gpu
from ernie_local.loading.options import find_device
from ernie_local.packing import find_format, pack_matrix, pack_page, unpack_matrix
from tests.runtime.random_adapters import random_tables
from tests.runtime.random_matrices import random_matrix, random_page

HIDDEN, INNER = 64, 32
FORMATS = ["w8", "w4", "w3", "w2", "w2l", "w2t"]


@pytest.mark.parametrize("name", FORMATS)
def test_matrices_are_multiplied_piece_by_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, tokens = pack_matrix(random_matrix(name, 75, HIDDEN)), torch.randn(3, HIDDEN)
    row_ids, matrix = torch.tensor([74, 3]), PackedMatrix(packed, name, 75)
    whole = reference.plain_linear(tokens, matrix)
    sizes: list[int] = []
    unpack = unpack_matrix

    def noted(packed: torch.Tensor, *arguments: object) -> object:
        sizes.append(len(packed))
        return unpack(packed, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "unpack_matrix", noted)
    monkeypatch.setattr(reference, "_MOST_UNPACKED", 2 * 16 * HIDDEN)
    with torch.device("meta"):
        assert torch.equal(linear_on_gpu(tokens, matrix), whole)
        assert max(sizes) == 2 * find_format(name).tile_bytes(HIDDEN)
        rows = rows_on_gpu(row_ids, matrix, HIDDEN)
    assert torch.equal(rows, reference.plain_rows(row_ids, matrix, HIDDEN))
    assert rows.device.type == "cpu"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rank", [0, 3])
def test_experts_are_those_of_the_processor(name: str, rank: int) -> None:
    """rank: of what an adapter adds to the routed experts and to the shared one; 0 for none."""
    torch.manual_seed(0)
    pages = [pack_page(random_page(name, name, HIDDEN, INNER, seed)) for seed in range(4)]
    memory = torch.cat(pages).view(-1, 4096)
    units = len(pages[0]) // 4096
    places = torch.tensor([2 * units, -1, 0, units])
    ids, weights = torch.tensor([[0, 1], [3, 2]]), torch.rand(2, 2)
    call = ExpertsCall(torch.randn(2, HIDDEN), memory, ids, weights, pages[3][None], places)
    if rank:
        plain, sizes = call, (HIDDEN, INNER, rank)
        call = call._replace(
            adapter=random_tables(4, *sizes), shared_adapter=random_tables(1, *sizes, seed=1)
        )
    expected = torch.zeros(2, HIDDEN)
    PageMath().add(expected, call)
    if rank:
        without = torch.zeros(2, HIDDEN)
        PageMath().add(without, plain)
        assert float((without - expected).norm() / expected.norm()) > 0.1
    output = torch.zeros(2, HIDDEN)
    with torch.device("meta"):
        TorchPageMath().add(output, call)
    # The processor rounds tokens to int8.
    assert float((output - expected).norm() / expected.norm()) < 0.05
    through_operator = torch.zeros(2, HIDDEN)
    add_experts_on_gpu(through_operator, call)
    assert torch.equal(through_operator, output)


def test_apple_gpus_are_refused_with_the_reason() -> None:
    with pytest.raises(DoesNotFit, match="'mps'") as caught:
        find_device("mps")
    assert caught.value.exit_code == 3
