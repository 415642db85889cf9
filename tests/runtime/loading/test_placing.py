"""What plain torch takes of a GPU to unpack experts: never more than was kept for it. Bytes are counted by
torch's own calls on the processor, in tensors of the 28B model's sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.experts.math import TorchPageMath, unpacking_room
from ernie_local.kernels import gpu, reference
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.nf4 import dequantize_by_bitsandbytes
from ernie_local.kernels.reference import FOREIGN_NUMBER_BYTES, UNPACKING_BYTES
from ernie_local.loading import loader
from ernie_local.loading.loader import ComputeDemand, MemoryLimits, count_need
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.packing import pack_page
from ernie_local.packing.foreign import Dequantize, dequantize_foreign
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.need import ChatPlan
from tests.runtime.packing.test_foreign_pages import pattern_page
from tests.runtime.peak_bytes import PeakBytes
from tests.runtime.random_matrices import random_page

GPU = torch.device("cuda:0")
HIDDEN, INNER = 2560, 1536


def peak(page: torch.Tensor, dequantize: Dequantize = dequantize_foreign) -> int:
    """Of one token in one expert; what the token itself takes is small."""
    only = torch.zeros(1, 1, dtype=torch.int64)
    hidden, memory = torch.randn(1, HIDDEN) / 100, page.view(-1, 4096)
    call = ExpertsCall(hidden, memory, only, torch.ones(1, 1), None, only[0])
    output = torch.zeros(1, HIDDEN)
    with PeakBytes() as watched:
        TorchPageMath(dequantize).add(output, call)
    assert output.abs().max() > 0
    most: int = watched.most
    return most


@pytest.mark.parametrize("name", ["w8", "w4", "w3", "w2", "w2l"])
def test_our_experts_are_unpacked_in_pieces(name: str) -> None:
    most = peak(pack_page(random_page(name, name, HIDDEN, INNER, 0)))
    assert reference._MOST_UNPACKED * 8 < most <= UNPACKING_BYTES


@pytest.mark.parametrize("dequantize", [dequantize_foreign, dequantize_by_bitsandbytes])
@pytest.mark.parametrize("name", ["nf4g64", "qint4g128", "qint2g128"])
def test_experts_of_other_libraries_one_matrix_at_a_time(name: str, dequantize: Dequantize) -> None:
    most = peak(pattern_page(name, HIDDEN, INNER), dequantize)
    assert 4 * HIDDEN * INNER <= most <= FOREIGN_NUMBER_BYTES * HIDDEN * INNER


@pytest.mark.parametrize(
    ("experts", "has_triton", "wanted"),
    [("w4", True, 0), ("w4", False, UNPACKING_BYTES), ("nf4g64", True, 39321600), (None, False, 0)],
)
def test_room_is_for_what_is_unpacked(
    experts: str | None, has_triton: bool, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "triton_missing", lambda *given: None if has_triton else object())
    config = read_config(NANO_DIRECTORY)
    if experts is not None:
        tables = format_tables(config, FormatChoice(experts))
        banks = tuple(dataclasses.replace(bank, expert_size=INNER) for bank in config.text.banks)
        text = dataclasses.replace(config.text, hidden_size=HIDDEN, banks=banks)
        config = dataclasses.replace(config, text=text, quantization=tables)
    assert unpacking_room(config, GPU) == wanted


def test_room_for_unpacking_is_kept_on_a_gpu_and_is_not_counted_as_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "unpacking_room", lambda config, device, gpu_kernels: UNPACKING_BYTES)
    config = read_config(NANO_DIRECTORY)
    demand = ComputeDemand(GPU, ChatPlan(4096, "bfloat16", "bfloat16"), 2048)
    with open_checkpoint(NANO_DIRECTORY, config) as checkpoint:
        need = count_need(
            checkpoint, ImageProcessorConfig(), config, demand, MemoryLimits(None, 0, None), None
        )
    assert isinstance(need, GpuNeed)
    without = dataclasses.replace(need, scratch_bytes=0)
    layout = next(need.layouts())
    assert need.weight_bytes == without.weight_bytes
    assert need.dense_bytes(layout) == without.dense_bytes(layout) + UNPACKING_BYTES


@pytest.mark.parametrize(("capability", "kv_dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16")])
def test_load_chooses_the_cache_by_what_the_gpu_multiplies(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kv_dtype: str
) -> None:
    monkeypatch.setattr(loader, "capability_of", lambda device: capability)
    monkeypatch.setattr(loader, "find_triton", lambda device, gpu_kernels: None)
    monkeypatch.setattr(loader, "unpacking_room", lambda config, device, gpu_kernels: 0)
    config = read_config(NANO_DIRECTORY)
    chat = ChatPlan(4096, "bfloat16", "bfloat16", may_shrink_cache=True)
    with open_checkpoint(NANO_DIRECTORY, config) as checkpoint:
        demand, limits = ComputeDemand(GPU, chat, 2048), MemoryLimits(None, 0, None)
        need = count_need(checkpoint, ImageProcessorConfig(), config, demand, limits, None)
    assert isinstance(need, GpuNeed)
    assert next(need.layouts()).kv_dtype == kv_dtype
