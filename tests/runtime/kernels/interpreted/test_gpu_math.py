"""Paged experts by the kernels: from units of a memory, by a table of places, with layouts told before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.experts.build import page_ranges, stored_page_bytes
from ernie_local.experts.device import PageMemory
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.math import TritonPageMath, gpu_math
from ernie_local.experts.readers import PageStore
from ernie_local.kernels import gpu, reference
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall
from ernie_local.kernels.triton.device import TritonDevice
from tests.runtime.kernel_tolerances import EXACT, relative_error

LAYER = 1


@pytest.fixture(autouse=True)
def any_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "triton_missing", lambda device, gpu_kernels="auto": None)
    monkeypatch.setattr(gpu, "find_triton", lambda device, gpu_kernels="auto": TritonDevice())


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
    hidden, weights = torch.randn(2, hidden_size), torch.rand(2, 2)
    math = gpu_math(config, torch.device("cuda"))[LAYER, keys[0].bank]
    assert isinstance(math, TritonPageMath)
    for page in (None, shared):
        actual, expected = torch.randn(2, hidden_size).repeat(2, 1, 1)
        expected = expected.clone()
        call = ExpertsCall(hidden, memory, ids, weights, page, places)
        math.add(actual, call)
        reference.add_plain_experts(expected, call)
        assert relative_error(actual, expected) < EXACT
