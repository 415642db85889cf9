"""What conversations take of a GPU at the worst moment is what was planned for them: by a stand-in.

Every tensor that torch makes while a model computes is allocated by rules of torch's allocator for CUDA.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local import engine as engine_module
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit
from ernie_local.experts.gpu_memory import GpuMemory, GpuMemoryWarning
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.planner import gpu_need
from ernie_local.sizes import MIB
from tests.draws import rest_slow
from tests.runtime import paged_models
from tests.runtime.counted_gpu import (
    CHUNK,
    COLUMNS,
    CONTEXT,
    ROWS,
    SLACK,
    converse,
    count_computing,
    loaded,
    planned,
    use_small_units,
)
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import ids, image_ids, paged_experts

# Experts that give memory up would hide that more is taken than was planned.
pytestmark = pytest.mark.filterwarnings("error::ernie_local.experts.gpu_memory.GpuMemoryWarning")
TIGHT = 5 * MIB // 2  # above the least, where the head and every layer are on the GPU


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_units(monkeypatch)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 6), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    ("above_least", "host_layers"), rest_slow([(3 * MIB // 2, 2), (TIGHT, 0), (0, 6), (6 * MIB, 0)], 2)
)
def test_no_conversation_takes_more_than_was_planned(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch, above_least: int, host_layers: int, seeds: range
) -> None:
    need, placement = planned(packed_nano, above_least)
    assert placement.layout.host.num_layers == host_layers
    assert (placement.swapped_bytes > 0) == (above_least < 6 * MIB)
    gpu = FakeGpu(placement.shared_bytes + SLACK, leaves_gaps=False)
    model = loaded(packed_nano, placement, gpu)
    memory = paged_experts(model).top.memory
    assert memory.num_bytes <= placement.shared_bytes
    count_computing(gpu, monkeypatch)
    for seed in seeds:
        converse(model, [], seed, torch.float32)
        gc.collect()
    engine = Engine(model, CONTEXT, torch.float32, CHUNK)
    engine.prefill(ids(CONTEXT, 1))
    assert engine._cache._layout.num_bytes == placement.cache_bytes
    peak = gpu.allocator.peak  # the allocator refuses more
    assert abs(peak - placement.shared_bytes) <= max(SLACK, 0.03 * peak)
    assert need.slots_bytes(placement.layout, placement.shared_bytes) > 0


@pytest.mark.parametrize(
    "seeds", [range(10, 11), pytest.param(range(11, 13), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_answers_are_those_of_the_resident_model(
    packed_nano: Path, kv_dtype: str, seeds: Sequence[int]
) -> None:
    _, placement = planned(packed_nano, MIB, kv_dtype)
    model = loaded(packed_nano, placement, FakeGpu(leaves_gaps=False))
    resident = paged_models.build(packed_nano, None)
    for seed in seeds:
        converse(model, [resident], seed, getattr(torch, kv_dtype))
        gc.collect()


def picture(model: ErnieModel) -> tuple[list[int], list[Patches]]:
    """A prompt of the largest image alone."""
    patches = paged_models.image(model, ROWS, COLUMNS)
    return image_ids(model, patches), [patches]


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_image_finds_the_memory_of_a_conversation_that_ended(packed_nano: Path, is_gone: bool) -> None:
    """Whether its engine is gone, or was emptied and goes on."""
    _, placement = planned(packed_nano, TIGHT)
    model = loaded(packed_nano, placement, FakeGpu(placement.shared_bytes + SLACK, leaves_gaps=False))
    engine = Engine(model, CONTEXT, torch.float32, CHUNK)
    start = engine.mark()
    engine.prefill(ids(CONTEXT - 8, 1))
    with pytest.raises(DoesNotFit):
        Engine(model, CONTEXT, torch.float32, CHUNK).prefill(*picture(model))
    if is_gone:
        engine = Engine(model, CONTEXT, torch.float32, CHUNK)
        gc.collect()
    else:
        engine.rewind(start)
    engine.prefill(*picture(model))


@pytest.mark.parametrize("num_tokens", [CHUNK, CHUNK + 1, 2 * CHUNK + 1])
def test_experts_have_the_workspace_in_decode(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    """Also behind a last chunk of one token, which is computed as a decoded one is."""
    _, placement = planned(packed_nano, TIGHT)
    gpu = FakeGpu(placement.shared_bytes + SLACK, leaves_gaps=False)
    model = loaded(packed_nano, placement, gpu)
    count_computing(gpu, monkeypatch)
    memory = paged_experts(model).top.memory
    engine = Engine(model, CONTEXT, torch.float32, CHUNK)
    engine.prefill(ids(num_tokens, 1))
    engine.decode(50)
    assert isinstance(memory, GpuMemory)
    assert memory.workspace_bytes
    assert not memory.lent_bytes


def test_a_model_is_gone_with_its_last_name(packed_nano: Path) -> None:
    """Its memory of the GPU has to be free at once, for the next model."""
    _, placement = planned(packed_nano, TIGHT)
    assert placement.swapped_bytes
    gpu = FakeGpu(placement.shared_bytes + SLACK, leaves_gaps=False)
    model = loaded(packed_nano, placement, gpu)
    Engine(model, CONTEXT, torch.float32, CHUNK).prefill(*picture(model))
    gc.collect()
    gc.disable()
    try:
        del model
        assert not gpu.allocator.allocated
    finally:
        gc.enable()


def test_a_workspace_that_is_too_small_is_found(packed_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in refuses what the plan left out."""
    monkeypatch.setattr(gpu_need.GpuNeed, "room_bytes", lambda *_: 4 * MIB)  # what images hold
    monkeypatch.setattr("ernie_local.model.ernie.encoding_bytes", lambda *_: 0)
    monkeypatch.setattr("ernie_local.engine.chunk_bytes_on_gpu", lambda *_: 0)
    _, placement = planned(packed_nano, TIGHT)
    gpu = FakeGpu(placement.shared_bytes + MIB // 2, leaves_gaps=False)  # enough for the right plan
    model = loaded(packed_nano, placement, gpu)
    count_computing(gpu, monkeypatch)
    with pytest.raises(GpuMemoryWarning):
        Engine(model, CONTEXT, chunk_tokens=CHUNK).prefill(*picture(model))


def test_each_phase_stays_within_what_is_kept_for_it(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none waits for what another one kept: what is kept is the largest."""
    need, placement = planned(packed_nano, TIGHT)
    gpu = FakeGpu(placement.shared_bytes + SLACK, leaves_gaps=False)
    model = loaded(packed_nano, placement, gpu)
    peaks: dict[str, int] = {}
    for owner, name in ((engine_module, "_encode"), (Engine, "_run_chunk"), (Engine, "decode")):
        method = getattr(owner, name)

        def run(*arguments: Any, method: Any = method, name: str = name) -> Any:
            before = counted.most = counted.held
            result = method(*arguments)
            peaks[name] = max(peaks.get(name, 0), counted.most - before)
            return result

        monkeypatch.setattr(owner, name, run)
    counted = count_computing(gpu, monkeypatch)
    image = paged_models.image(model, ROWS, COLUMNS)
    engine = Engine(model, CONTEXT, torch.float32, CHUNK)
    engine.prefill([*image_ids(model, image), *ids(CONTEXT - ROWS * COLUMNS - 10, 1)], [image])
    engine.decode(50)
    layout = placement.layout
    encoding, chunk, room = (
        count(layout) for count in (need.encoding_room, need.chunk_room, need.room_bytes)
    )
    assert encoding / 4 < peaks["_encode"] <= encoding
    assert 0 < peaks["_run_chunk"] <= chunk  # what kernels of the processor take inside is not seen
    assert peaks["decode"] <= SLACK
    assert max(encoding, chunk) <= room < encoding + chunk
