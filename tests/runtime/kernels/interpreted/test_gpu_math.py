"""Paged experts by the kernels: from units of a memory, by a table of places, with layouts told before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.experts import gpu_math as gpu_math_module
from ernie_local.experts.build import page_ranges, stored_page_bytes
from ernie_local.experts.disk import PageStore
from ernie_local.experts.gpu_math import TritonPageMath
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.memory import PageMemory
from ernie_local.kernels import cuda_ops, reference
from ernie_local.kernels.checks import ABSENT_SLOT
from ernie_local.kernels.triton.gpu import Gpu
from ernie_local.loading.expert_math import gpu_math
from ernie_local.model.moe import RoutedTokens
from tests.runtime.kernel_tolerances import EXACT, relative_error

LAYER = 1


@pytest.fixture(autouse=True)
def any_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ops, "triton_missing", lambda device: None)
    monkeypatch.setattr(gpu_math_module, "gpu_of", lambda device: Gpu())


@pytest.fixture(scope="module")
def directory(packed_nano: Path) -> Path:
    return packed_nano


@pytest.mark.parametrize("bank", ["text", "vision"])
def test_some_experts_of_nano_and_its_shared_page(directory: Path, bank: str) -> None:
    config = read_config(directory)
    hidden_size = config.text.hidden_size
    chosen = [3, 0, 7]
    with open_checkpoint(directory, config) as checkpoint:
        keys = [ExpertKey(LAYER, bank, expert) for expert in chosen]
        size = stored_page_bytes(checkpoint, config)[keys[0]]
        units = -(-size // UNIT_BYTES)
        memory = PageMemory(3 * units * UNIT_BYTES).units
        store = PageStore(page_ranges(checkpoint, config), lambda key, page: None)
        for slot, key in enumerate(keys):
            store.read(key, memory[slot * units : (slot + 1) * units].view(-1)[:size])
        store.close()
        name = f"layers.{LAYER}.moe.shared_experts.w8"
        shared = torch.empty(checkpoint.packed[name].shape, dtype=torch.uint8)
        checkpoint.read_packed(name, shared)
    places = torch.full((config.text.banks[0].num_experts,), ABSENT_SLOT)
    places[chosen] = torch.arange(3) * units
    ids = torch.tensor([[3, 0], [7, 5]])  # 5 is computed elsewhere
    tokens = RoutedTokens(LAYER, keys[0].bank, torch.randn(2, hidden_size), ids, torch.rand(2, 2))
    math = gpu_math(config, torch.device("cuda"))
    assert isinstance(math, TritonPageMath)
    for page in (None, shared):
        actual, expected = torch.randn(2, hidden_size).repeat(2, 1, 1)
        expected = expected.clone()
        math.add(actual, memory, tokens._replace(shared_page=page), places)
        reference.add_packed_experts(
            expected, tokens.hidden, memory, ids, tokens.expert_weights, page, places
        )
        assert relative_error(actual, expected) < EXACT
