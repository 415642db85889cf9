"""Experts on a GPU, in RAM and on disk: the formula against the runtime's own policies, and single cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import COMPUTE, FETCH, MISS_RULES, SPLIT
from ernie_local.planner import tiers
from ernie_local.planner.rates import DecodeWork, GpuRates, Rates
from ernie_local.planner.tiers import COPY_SECONDS, ExpertTimes, layer_seconds
from ernie_local.replay.simulate import GpuTimes, MachineTimes, simulate
from ernie_local.replay.trace import Forward, Trace

LAYERS, EXPERTS, TOP_K, TOKENS, PAGE = 3, 24, 4, 300, 1 << 20
TIMES = ExpertTimes(on_gpu=1.0, link=10.0, on_cpu=6.0, disk=50.0, page=2.0)
HAND = 2 * COPY_SECONDS


def made_up_trace() -> Trace:
    """Experts drawn with unequal weights, alike in every token."""
    random = np.random.default_rng(1)
    weights = np.log(1.0 / (1 + np.stack([random.permutation(EXPERTS) for _ in range(LAYERS)])))
    forwards = []
    for _ in range(TOKENS):
        drawn = weights + random.gumbel(size=weights.shape)
        ids = np.argsort(-drawn, axis=-1)[:, :TOP_K].astype(np.uint16)
        shares = np.full(ids.shape, 1 / TOP_K, np.float32)
        forwards.append(Forward(np.zeros(1, np.bool_), ids, shares))
    keys = [ExpertKey(layer, "text", one) for layer in range(1, LAYERS + 1) for one in range(EXPERTS)]
    return Trace("made up", TOP_K, dict.fromkeys(keys, PAGE), tuple(forwards))


@pytest.mark.parametrize("rule", MISS_RULES)
@pytest.mark.parametrize(("on_gpu", "in_ram"), [(0.3, 0.5), (0.3, 1.2), (0.6, 0.3)])
def test_the_formula_is_within_15_percent_of_a_simulation(
    rule: str, on_gpu: float, in_ram: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runs the runtime's policies page by page, and counts no time to hand over a token."""
    monkeypatch.setattr(tiers, "COPY_SECONDS", 0.0)
    trace = made_up_trace()
    rates = GpuRates(200e9, 12e9, 1e13)
    host = Rates(disk_bytes_per_second=3e9, memory_bytes_per_second=25e9, operations_per_second=1e12,
                 token_seconds=0.0, layer_seconds=0.0)  # fmt: skip
    gpu = GpuTimes(rates.memory_bytes_per_second, rates.link_bytes_per_second, 0.0)
    machine = MachineTimes(host.disk_bytes_per_second, host.memory_bytes_per_second, gpu=gpu)
    ram_bytes, gpu_bytes = (int(share * trace.plan.bytes_of("text")) for share in (in_ram, on_gpu))
    found = simulate(trace, ram_bytes, machine, gpu_bytes, MISS_RULES[rule])
    uses = TOKENS * LAYERS * TOP_K
    assert found.stats.gpu is not None
    hit_rate = found.stats.gpu.banks["text"].decode_hits / uses
    read = found.stats.banks["text"].decode_misses / uses
    work = DecodeWork(LAYERS, LAYERS, TOP_K, {}, PAGE, "w4", PAGE)
    times = ExpertTimes.of(work, rates, host)
    predicted = layer_seconds(times, TOP_K, hit_rate, 1 - read, MISS_RULES[rule])
    assert predicted == pytest.approx(found.decode_seconds / (TOKENS * LAYERS), rel=0.15)


def test_what_is_on_the_gpu_takes_its_time_alone() -> None:
    for rule in MISS_RULES.values():
        assert layer_seconds(TIMES, 6, 1.0, 1.0, rule) == pytest.approx(6.0)


def test_each_rule_treats_experts_in_ram_in_its_own_way() -> None:
    """Six of them: copied and then computed above, computed below, or half of each at the same time."""
    assert layer_seconds(TIMES, 6, 0.0, 1.0, FETCH) == pytest.approx(6 * 10 + 6)
    assert layer_seconds(TIMES, 6, 0.0, 1.0, COMPUTE) == pytest.approx(6 * 6 + HAND)
    assert layer_seconds(TIMES, 6, 0.0, 1.0, SPLIT) == pytest.approx(3 * 10 + 3)


def test_the_disk_comes_before_the_link_and_the_processor() -> None:
    """And the processor works on each page that was read."""
    assert layer_seconds(TIMES, 2, 0.0, 0.0, FETCH) == pytest.approx(2 * 50 + 10 + 2)
    assert layer_seconds(TIMES, 2, 0.0, 0.0, COMPUTE) == pytest.approx(2 * 50 + 2 * 6 + HAND + 2 * 2)


def test_more_in_memory_is_never_slower() -> None:
    slow_disk = dataclasses.replace(TIMES, disk=500.0)
    for rule in MISS_RULES.values():
        by_memory = [layer_seconds(slow_disk, 6, 0.2, share / 10, rule) for share in range(2, 11)]
        assert by_memory == sorted(by_memory, reverse=True)
        by_gpu = [layer_seconds(TIMES, 6, share / 10, 1.0, rule) for share in range(11)]
        assert by_gpu == sorted(by_gpu, reverse=True)
