"""A simulated machine: it counts what a real one counts, and its clock can be followed by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.errors import DoesNotFit
from ernie_local.experts.build import GpuShare
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import COMPUTE, FETCH, MISS_RULES, MissRule, PagingOptions, PagingStats
from ernie_local.experts.paged import PagedExperts
from ernie_local.experts.plan import PagingPlan
from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.model_files import ModelFiles
from ernie_local.replay.replay import replay_trace
from ernie_local.replay.simulate import GpuTimes, MachineTimes, simulate
from ernie_local.replay.trace import Forward, Trace
from ernie_local.sizes import aligned
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import GPU_ROOM, build, paged_experts, plan_of, share

PAGE = 1 << 20
NUM_EXPERTS = 16
# A page takes 1 s from disk, 0.1 s to compute on the processor, 0.25 s over the link, 0.01 s on the GPU.
GPU = GpuTimes(PAGE / 0.01, PAGE / 0.2, 0.05)
NO_GPU = MachineTimes(PAGE / 1.0, PAGE / 0.1, token_seconds=10.0, layer_seconds=3.0, page_seconds=0.5)
WITH_GPU = dataclasses.replace(NO_GPU, page_seconds=0.0, gpu=GPU)


def hand_made(*tokens: tuple[int, int]) -> Trace:
    """Decoded tokens of one layer, two experts each; as many pages as NUM_EXPERTS."""
    sizes = {ExpertKey(0, "text", expert): PAGE for expert in range(NUM_EXPERTS)}
    forwards = tuple(
        Forward(np.zeros(1, np.bool_), np.array([ids], np.uint16), np.ones((1, 2), np.float32))
        for ids in tokens
    )
    return Trace("hand-made", 2, sizes, forwards)


MOST = PagingPlan(hand_made().page_bytes, 2).most_bytes


def test_without_a_gpu_misses_are_waited_for_and_all_is_computed() -> None:
    first = simulate(hand_made((0, 1)), MOST, NO_GPU)
    # Both pages come one after the other, and each costs the host something beside.
    assert first.decode_seconds == pytest.approx(10 + 3 + 2 * 1.5 + 2 * 0.1)
    assert first.stats.decode_wait_seconds == pytest.approx(2.0)
    again = simulate(hand_made((0, 1), (1, 2)), MOST, NO_GPU)
    # The page that is there is computed while the other is read.
    assert again.decode_seconds - first.decode_seconds == pytest.approx(10 + 3 + 1.5 + 0.1)
    assert again.predicted_tokens_per_second == pytest.approx(2 / again.decode_seconds)


def test_a_gpu_waits_for_disk_and_link_and_computes_fast() -> None:
    first = simulate(hand_made((0, 1)), MOST, WITH_GPU, MOST)
    # The second page is read while the first is copied.
    assert first.decode_seconds == pytest.approx(10 + 3 + 2 * 1.0 + 0.25 + 2 * 0.01)
    assert first.stats.decode_wait_seconds == pytest.approx(2.0)
    assert first.stats.gpu is not None
    assert first.stats.gpu.decode_wait_seconds == pytest.approx(0.25)
    again = simulate(hand_made((0, 1), (0, 1)), MOST, WITH_GPU, MOST)
    assert again.decode_seconds - first.decode_seconds == pytest.approx(10 + 3 + 2 * 0.01)


def test_pages_of_ram_are_copied_or_computed_by_the_processor() -> None:
    """A GPU that holds the pages of a token or two, and a memory that holds all."""
    least = PagingPlan(hand_made().page_bytes, 2).least_bytes
    warm = [(expert, expert + 1) for expert in range(0, NUM_EXPERTS, 2)]
    for rule, seconds in ((FETCH, 2 * 0.25 + 2 * 0.01), (COMPUTE, 2 * 0.1)):
        before = simulate(hand_made(*warm), MOST, WITH_GPU, least, rule)
        after = simulate(hand_made(*warm, (2, 3)), MOST, WITH_GPU, least, rule)
        assert after.decode_seconds - before.decode_seconds == pytest.approx(10 + 3 + seconds), rule
    assert after.stats.gpu is not None
    assert after.stats.gpu.banks["text"].decode_misses == 2 * (len(warm) + 1)


def test_a_memory_without_room_for_a_token_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="for experts of hand-made"):
        simulate(hand_made((0, 1)), MOST, WITH_GPU, PAGE)


def counted(stats: PagingStats) -> PagingStats:
    above = None if stats.gpu is None else counted(stats.gpu)
    return dataclasses.replace(stats, decode_wait_seconds=0.0, prompt_wait_seconds=0.0, gpu=above)


@pytest.mark.parametrize("rule", [None, *MISS_RULES.values()])
def test_it_counts_what_a_real_run_counts(monkeypatch: pytest.MonkeyPatch, rule: MissRule | None) -> None:
    """rule: None without a second memory."""
    monkeypatch.setattr(PagedExperts, "make_room", lambda *_: None)  # what takes memory is not in a trace
    directory: Path = NANO_DIRECTORY
    monkeypatch.setattr(PagedExperts, "cache_memory", lambda _: None)
    ram_bytes, gpu_bytes = share(directory, 0.5), None if rule is None else share(directory, 0.2)
    gpu = None
    if gpu_bytes is not None:  # in whole frames, as a GPU allocates them
        frame_bytes = plan_of(directory).frame_bytes
        gpu_bytes = aligned(gpu_bytes, frame_bytes)
        gpu = GpuShare(FakeGpu(), aligned(gpu_bytes + GPU_ROOM, frame_bytes), 0, 0, GPU_ROOM)
    network = build(directory, ram_bytes, PagingOptions(FETCH if rule is None else rule), gpu)
    files = ModelFiles(directory, network.config)
    model = LoadedModel(network, files, EngineSettings(200, torch.float32), 0, 0.0)
    recorder = model.record_trace()
    engine = model.engine()
    engine.prefill(list(range(20, 50)))
    for token_id in [50, 60, 50, 70, 61, 51, 50, 90]:
        engine.decode(token_id)
    engine.prefill(list(range(80, 90)))
    engine.decode(50)
    real = paged_experts(network).stats
    assert real.banks["text"].decode_misses > 0
    trace = recorder.trace()
    times = NO_GPU if rule is None else WITH_GPU
    found = simulate(trace, ram_bytes, times, gpu_bytes, FETCH if rule is None else rule)
    assert counted(found.stats) == counted(real)
    assert found.stats.decode_wait_seconds > 0
    if rule is None:
        assert counted(found.stats) == counted(replay_trace(trace, ram_bytes))
