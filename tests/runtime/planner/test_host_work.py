"""What the processor computes beside a GPU, against numbers by hand of the published sizes."""

from __future__ import annotations

import dataclasses

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.model.host_parts import ALL_ON_GPU, HostParts
from ernie_local.planner.gpu import GpuPlan, plan_gpu
from ernie_local.planner.host_work import HostWork
from ernie_local.planner.model_size import published_model, with_formats
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget
from ernie_local.planner.rates import GpuRates, Rates
from ernie_local.planner.speed import gpu_speed
from ernie_local.sizes import GIB, MIB

W4 = with_formats(published_model(), FormatChoice("w4"), "--bits 4")
LONG = ChatPlan(65536, "bfloat16", "int8")
HOST = Rates(disk_bytes_per_second=1e9, memory_bytes_per_second=20e9, operations_per_second=1e12,
             token_seconds=0.0, layer_seconds=0.0001, format_rates={"w8": 10e9})  # fmt: skip
GPU = GpuRates(1e12, 1e12, 1e15)  # so fast that the processor's part is what is seen
WEIGHTS = 2 * 2560 * 2560 + 2 * 2560 * 512  # of a layer's four projections
ROW = 2 * 4 * (128 + 4)  # bytes of one token in one layer


def test_nothing_is_counted_where_the_processor_computes_nothing() -> None:
    work = HostWork.of(W4, LONG, ALL_ON_GPU)
    assert (work.all_bytes, work.decode_seconds(HOST), work.prompt_seconds(HOST)) == (0, 0, 0)


def test_a_layer_reads_its_weights_and_half_of_the_context() -> None:
    work = HostWork.of(W4, LONG, HostParts(3))
    assert work.context_bytes == 3 * ROW * 32768
    assert work.weight_bytes == pytest.approx(3 * WEIGHTS, rel=0.05)  # and scales
    seconds = work.weight_bytes / 10e9 + work.context_bytes / 20e9 + 3 * (0.0001 + 40e-6)
    assert work.decode_seconds(HOST) == pytest.approx(seconds)
    # In a prompt each weight is used once for a token; queries meet half of the context, twice.
    products = WEIGHTS + 2 * 20 * 128 * 32768
    assert work.prompt_seconds(HOST) == pytest.approx(3 * 2 * products / 1e12)


def test_the_head_costs_a_decoded_token_alone() -> None:
    work = HostWork.of(W4, LONG, HostParts(has_head=True))
    assert work.weight_bytes == W4.weights(2).parts["embedding"]
    assert work.decode_seconds(HOST) == pytest.approx(work.weight_bytes / 10e9 + 40e-6)
    assert work.prompt_seconds(HOST) == 0


def test_speed_counts_it_on_the_processor_instead_of_the_gpu() -> None:
    chat = dataclasses.replace(LONG, may_shrink_cache=True)
    plan = plan_gpu(W4, chat, int(3.6 * GIB), Budget(64 * GIB))
    assert plan.host.num_layers > 0
    on_gpu = dataclasses.replace(plan, host=ALL_ON_GPU)
    work = HostWork.of(W4, plan.chat, plan.host)

    def seconds(one: GpuPlan) -> float:
        return 1 / gpu_speed(W4, one, GPU, HOST).decode.best

    more = work.decode_seconds(HOST) - work.all_bytes / 1e12
    assert seconds(plan) - seconds(on_gpu) == pytest.approx(more)
    prompts = [gpu_speed(W4, one, GPU, HOST).prefill for one in (plan, on_gpu)]
    assert prompts[0] is not None
    assert prompts[1] is not None
    assert 1 / prompts[0].best - 1 / prompts[1].best == pytest.approx(work.prompt_seconds(HOST))


def test_what_a_plan_shows_of_both_memories_is_what_it_places() -> None:
    plan = plan_gpu(W4, dataclasses.replace(LONG, kv_dtype="bfloat16", may_shrink_cache=True),
                    int(3.6 * GIB), Budget(64 * GIB))  # fmt: skip
    of_gpu, of_ram = ({term.name: term for term in one.terms} for one in (plan.vram, plan.ram))
    layers = plan.host.num_layers
    assert plan.host.has_head
    assert "embedding" not in of_gpu
    attention = W4.weights(2).parts["attention"]
    assert of_gpu["attention"].most.best == attention * (28 - layers) // 28
    weights = W4.weights(2).parts["embedding"] + W4.weights(2).for_images + attention * layers // 28
    assert of_ram["other weights in RAM"].most.best == weights
    assert of_ram["KV cache in RAM"].most.best == layers * ROW * 65536
    assert of_gpu["KV cache"].most.best == (28 - layers) * ROW * 65536
    assert plan.vram.peak.best <= 3.6 * GIB
    assert plan.ram.phase("load").best <= plan.host_bytes + 128 * MIB
