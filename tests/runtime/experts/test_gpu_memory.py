"""The front of a GPU's allocation goes to torch's allocator and comes back, by a stand-in for that."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit
from ernie_local.experts.gpu_memory import GpuMemory, GpuMemoryWarning, allocate_pages
from ernie_local.experts.options import MISS_RULES, PagingOptions
from ernie_local.experts.plan import lent_bytes, workspace_pieces
from ernie_local.model import memory_use
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.memory_use import chunk_bytes_on_gpu
from ernie_local.sizes import MIB
from tests.runtime import paged_models
from tests.runtime.caching_allocator import Block, CachingAllocator
from tests.runtime.fake_gpu import FakeGpu, watch
from tests.runtime.paged_models import (
    answer_logits,
    build,
    gpu_share,
    ids,
    image_ids,
    paged_experts,
    plan_of,
    share,
)

FRAME = 60 << 10


def memory_on(gpu: FakeGpu, workspace_bytes: int = 30 * MIB) -> GpuMemory:
    return allocate_pages(gpu, 100 * MIB, 60 * MIB, workspace_bytes, FRAME)


@pytest.mark.parametrize("num_bytes", [0, 1, 2 * MIB, 3 * MIB, 15 * MIB, 16 * MIB, 17 * MIB, 700 * MIB + 5])
def test_pieces_hold_the_workspace_and_little_more(num_bytes: int) -> None:
    pieces = workspace_pieces(num_bytes)
    assert num_bytes <= sum(pieces) < num_bytes + 2 * MIB
    assert all(size % (2 * MIB) == 0 for size in pieces)
    for needed in (0, 1, num_bytes // 3, num_bytes, num_bytes + 1):
        lent = lent_bytes(num_bytes, needed)
        assert min(needed, num_bytes) <= lent <= min(needed + max(pieces, default=0), sum(pieces))


def test_torch_has_what_it_needs_of_the_front_and_pages_the_rest() -> None:
    gpu = FakeGpu(leaves_gaps=False)
    memory = memory_on(gpu)
    assert (memory.num_bytes, memory.workspace_bytes, memory.lent_bytes) == (104816640, 30 * MIB, 0)
    before = gpu.allocator.reserved
    gpu.allocator.num_bytes = before
    with pytest.raises(torch.OutOfMemoryError):
        gpu.allocate(3 * MIB)
    memory.lend(3 * MIB)
    assert memory.lent_bytes == lent_bytes(30 * MIB, 3 * MIB) < 10 * MIB
    work = gpu.allocate(3 * MIB)
    assert work.data_ptr() == memory.bytes.data_ptr()  # where the pages were
    memory.lend(30 * MIB)
    others = [gpu.allocate(8 * MIB) for _ in range(3)]
    assert not memory.take_back()
    assert memory.lent_bytes == 30 * MIB
    del work, others
    assert memory.take_back()
    assert (memory.lent_bytes, gpu.allocator.reserved) == (0, before)


def test_what_stays_in_the_workspace_keeps_it_and_nothing_is_overwritten() -> None:
    gpu = FakeGpu(leaves_gaps=False)
    memory = memory_on(gpu)
    memory.lend(30 * MIB)
    kept = gpu.allocate(2 * MIB).fill_(7)
    reserved = gpu.allocator.reserved
    for _ in range(3):
        assert not memory.take_back()
        assert gpu.allocator.reserved == reserved
    assert bool((kept == 7).all())
    del kept
    assert memory.take_back()


def test_workspace_lies_apart_where_torch_gives_memory_in_another_order() -> None:
    gpu = FakeGpu()
    memory = memory_on(gpu)
    assert (memory.workspace_bytes, memory.num_bytes) == (0, 104816640 - 30 * MIB)
    assert memory.planned_bytes == memory.num_bytes
    memory.lend(30 * MIB)
    assert memory.lent_bytes == 0
    assert gpu.allocator.reserved - gpu.allocator.allocated >= 30 * MIB  # torch has it for other work


def test_a_gpu_that_has_less_gives_pages_less() -> None:
    memory = memory_on(FakeGpu(80 * MIB, leaves_gaps=False))
    assert 70 * MIB < memory.num_bytes <= 80 * MIB < memory.planned_bytes
    assert memory.workspace_bytes == 30 * MIB
    with pytest.raises(DoesNotFit, match=r"30\.0 MiB of workspace"):
        memory_on(FakeGpu(59 * MIB, leaves_gaps=False))


@pytest.mark.parametrize("seed", range(5))
def test_the_stand_in_for_torch_s_allocator_keeps_its_blocks_apart(seed: int) -> None:
    draw, allocator = random.Random(seed), CachingAllocator(400 * MIB)
    held: list[Block] = []
    for _ in range(600):
        if held and draw.random() < 0.5:
            allocator.free(held.pop(draw.randrange(len(held))))
        else:
            try:
                held.append(allocator.allocate(int(10 ** draw.uniform(1, 7.6))))
            except torch.OutOfMemoryError:
                continue
        ranges = sorted((block.address, block.address + block.num_bytes) for block in held)
        assert all(first[1] <= second[0] for first, second in pairwise(ranges))
        assert allocator.allocated == sum(block.num_bytes for block in held) <= allocator.reserved
        for segment in allocator.segments:
            assert sum(block.num_bytes for block in segment.blocks) == segment.num_bytes
            free = [block.is_free for block in segment.blocks]
            assert not any(one and other for one, other in pairwise(free))
    for block in held:
        allocator.free(block)
    allocator.drop_unused()
    assert (allocator.reserved, allocator.allocated) == (0, 0)


# in a conversation


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_use, "CACHE_STEP_TOKENS", 64)


def on_gpu(
    directory: Path, monkeypatch: pytest.MonkeyPatch, rule: str = "fetch"
) -> tuple[ErnieModel, FakeGpu]:
    gpu = FakeGpu(leaves_gaps=False)
    watch(gpu, monkeypatch)
    monkeypatch.setattr(paged_models, "GPU_ROOM", 16 * MIB)
    above = gpu_share(directory, gpu, share(directory, 0.0))
    return build(directory, share(directory, 0.5), PagingOptions(MISS_RULES[rule]), above), gpu


def frames(model: ErnieModel) -> int:
    return paged_experts(model).top.cache.slots.num_frames


def memory_of(model: ErnieModel) -> GpuMemory:
    memory = paged_experts(model).top.memory
    assert isinstance(memory, GpuMemory)
    return memory


def test_experts_of_decode_have_the_workspace(packed_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = on_gpu(packed_nano, monkeypatch)
    engine, everything = Engine(model, 400), frames(model)
    engine.prefill(ids(200, 1))
    in_prompt, lent = frames(model), memory_of(model).lent_bytes
    at_work = chunk_bytes_on_gpu(model.config.text, 200, 200, model.attention_way)
    assert at_work <= lent < at_work + 2 * MIB < memory_of(model).workspace_bytes
    engine.decode(50)
    assert memory_of(model).lent_bytes == 0
    in_decode = frames(model)
    assert in_decode - in_prompt >= lent // plan_of(packed_nano).frame_bytes
    assert in_decode < everything  # which the cache has
    engine.prefill(ids(3, 2))  # a short one: the others keep their pages
    assert 0 < memory_of(model).lent_bytes < lent
    engine.decode(50)
    assert frames(model) == in_decode


def test_a_prompt_while_torch_keeps_something_of_the_last_one(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, gpu = on_gpu(packed_nano, monkeypatch)
    engine = Engine(model, 400)
    engine.prefill(ids(200, 1))
    kept, in_prompt, take_back = gpu.allocate(2 * MIB), frames(model), GpuMemory.take_back
    tried: list[bool] = []

    def watched(self: GpuMemory) -> bool:
        tried.append(take_back(self))
        return tried[-1]

    monkeypatch.setattr(GpuMemory, "take_back", watched)
    with pytest.warns(GpuMemoryWarning, match=r"MiB of workspace did not come back"):
        engine.decode(50)
    for token in range(51, 54):
        engine.decode(token)  # said once
    assert (frames(model), tried) == (in_prompt, [False])
    stats = paged_experts(model).stats.gpu
    assert stats is not None
    assert stats.kept_workspaces == 1
    del kept
    engine.prefill(ids(3, 2))
    engine.decode(60)
    assert frames(model) > in_prompt


@pytest.mark.parametrize("rule", ["fetch", "compute"])
def test_a_conversation_is_that_of_the_resident_model(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    model, gpu = on_gpu(packed_nano, monkeypatch, rule)
    image = paged_models.image(model, 5, 4)
    turns = [
        (ids(23, 1), [], ids(3, 2)),
        ([*image_ids(model, image), *ids(30, 4)], [image], ids(3, 5)),
        (ids(9, 6), [], ids(3, 7)),
    ]
    expected = answer_logits(build(packed_nano, None), turns, 25)
    torch.testing.assert_close(answer_logits(model, turns, 25), expected, rtol=1e-4, atol=1e-4)
    assert gpu.num_host_waits == 0
