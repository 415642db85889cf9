"""What fits at most: found by bisection, it is what a scan of every setting finds."""

from __future__ import annotations

import dataclasses
import random

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.media.detail import with_image_tokens
from ernie_local.media.image_size import measure_image
from ernie_local.planner.gpus import gpu_models
from ernie_local.planner.model_size import ModelSize, published_model, with_formats
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget
from ernie_local.planner.solve import (
    Machine,
    Obstacle,
    find_obstacle,
    solve_bits,
    solve_context,
    solve_experts,
    solve_image,
)
from ernie_local.sizes import GIB, MIB
from tests.draws import rest_slow

W4 = with_formats(published_model(), FormatChoice(), "bits")
W2 = with_formats(published_model(), FormatChoice("w2"), "bits")


def chat_on(machine: Machine, context_size: int = 8192) -> ChatPlan:
    return ChatPlan(context_size, "float32" if machine.vram_bytes is None else "bfloat16", "bfloat16")


def random_machine(seed: int) -> Machine:
    draw = random.Random(seed)
    if draw.random() < 0.4:
        return Machine(Budget(int(draw.uniform(2, 20) * GIB)))
    vram, ram = int(draw.uniform(3, 12) * GIB), Budget(int(draw.uniform(0.8, 12) * GIB))
    return Machine(ram, vram)


@pytest.mark.parametrize("seed", rest_slow(range(12), 5))
def test_the_context_is_that_of_a_scan(seed: int) -> None:
    machine, model = random_machine(seed), (W4, W2)[seed % 2]
    found = solve_context(model, chat_on(machine), machine)

    def obstacle(context_size: int) -> Obstacle | None:
        plan = machine.plan(model, chat_on(machine, context_size))
        return find_obstacle(plan, f"{context_size} tokens")

    fitting = [size for size in range(1024, 131073, 1024) if obstacle(size) is None]
    assert found.value == max(fitting, default=None)
    assert fitting == list(range(1024, (found.value or 0) + 1, 1024)), "all shorter ones fit, too"
    larger = (found.value or 0) + 1024
    limit = Obstacle("model_context", larger, 131072, f"{larger} tokens")
    assert found.obstacle == (obstacle(larger) if larger <= 131072 else limit)
    assert found.obstacle is not None
    assert found.obstacle.needed > found.obstacle.available


@pytest.mark.parametrize("seed", rest_slow(range(12), 5))
def test_the_page_is_that_of_a_scan(seed: int) -> None:
    machine, model = random_machine(seed), (W4, W2)[seed % 2]
    chat = chat_on(machine, random.Random(seed).choice((2048, 4096, 16384)))
    found = solve_image(model, chat, machine, model.processor)
    fitting = []
    for dpi in range(8, 224):
        size = (round(dpi * 210 / 25.4), round(dpi * 297 / 25.4))
        image = measure_image(f"A4 at {dpi} dpi", size, model.processor)
        pictured = dataclasses.replace(chat, images=(image,))
        plan = machine.plan(model, pictured)
        if pictured.image_tokens + 512 <= chat.context_size and find_obstacle(plan, "") is None:
            fitting.append((dpi, image))
    if found.value is None:
        assert fitting == []
    else:
        assert (found.value.dpi, found.value.image) == fitting[-1]
        assert len(fitting) == found.value.dpi - 7, "all smaller ones fit, too"
    assert found.obstacle is not None
    is_largest = found.value is not None and found.value.dpi == 223
    assert (found.obstacle.of == "image_size") == is_largest
    assert found.obstacle.needed > found.obstacle.available


def test_the_context_may_be_in_the_way_of_an_image() -> None:
    machine = Machine(Budget(64 * GIB))
    found = solve_image(W4, chat_on(machine, 2048), machine, W4.processor)
    assert found.value is not None
    assert found.obstacle is not None
    assert found.obstacle.of == "context_size"
    assert found.value.image.tokens + 2 + 512 <= found.obstacle.available == 2048 < found.obstacle.needed
    assert str(found.value.dpi + 1) in found.obstacle.asked


def test_no_page_is_larger_than_the_model_sees_it() -> None:
    machine = Machine(Budget(64 * GIB))
    whole = solve_image(W4, chat_on(machine), machine, W4.processor)
    small = solve_image(W4, chat_on(machine), machine, with_image_tokens(W4.processor, 800))
    assert whole.value is not None
    assert small.value is not None
    most = W4.processor.max_pixels
    pixels = round(224 * 210 / 25.4) * round(224 * 297 / 25.4)
    asked = "A4 at 224 dpi, which the model would shrink"
    assert (whole.value.dpi, whole.value.image.tokens) == (223, 6138)
    assert whole.obstacle == Obstacle("image_size", pixels, most, asked)
    assert 700 < small.value.image.tokens <= 800


def test_a_chat_whose_images_exceed_the_model_has_no_context() -> None:
    pages = (measure_image("page", (2480, 3508), W4.processor),) * 22
    machine = Machine(Budget(64 * GIB))
    found = solve_context(W4, dataclasses.replace(chat_on(machine), images=pages), machine)
    assert (found.value, found.obstacle) == (
        None,
        Obstacle("model_context", 22 * 6140 + 512, 131072, f"{22 * 6140 + 512} tokens"),
    )


@pytest.mark.parametrize("vram", [None, 6 * GIB, 8 * GIB], ids=str)
def test_with_what_all_experts_need_all_are_there(vram: int | None) -> None:
    machine = Machine(Budget(8 * GIB), vram)
    found = solve_experts(W4, chat_on(machine), machine)
    assert found.value is not None
    assert 0 < found.value.per_layer < 64 == found.value.of
    obstacle = found.obstacle
    assert obstacle is not None
    assert obstacle.of == ("ram" if vram is None else "vram")
    assert obstacle.available == (8 * GIB if vram is None else vram)
    for needed, has_all in ((obstacle.needed, True), (obstacle.needed - 64 * MIB, False)):
        enough = Machine(Budget(needed)) if vram is None else Machine(Budget(8 * GIB), needed)
        there = solve_experts(W4, chat_on(machine), enough)
        assert (there.value is not None and there.value.share >= 1) == has_all
        assert (there.obstacle is None) == has_all


def test_bits_are_the_most_with_all_experts_in_the_fastest_memory() -> None:
    def chat_of(model: ModelSize) -> ChatPlan:
        return ChatPlan(4096, "bfloat16", "bfloat16")

    plain = published_model()
    solved = [
        solve_bits(plain, chat_of, Machine(Budget(64 * GIB), gib * GIB), "w8") for gib in (2, 8, 13, 24, 80)
    ]
    assert [one.value for one in solved] == [None, "w2t", "3", "8", "16"]
    assert solved[-1].obstacle is None
    for one in solved[:-1]:
        assert one.obstacle is not None
        assert one.obstacle.needed > one.obstacle.available


def test_every_gpu_has_an_answer_or_one_number_in_the_way() -> None:
    for usable_bytes in {gpu.usable_bytes for gpu in gpu_models()}:
        machine = Machine(Budget(14 * GIB), usable_bytes)
        chat = chat_on(machine, 4096)
        for found in (
            solve_context(W2, chat, machine),
            solve_image(W2, chat, machine, W2.processor),
            solve_experts(W2, chat, machine),
        ):
            assert found.value is not None or found.obstacle is not None, usable_bytes
            if found.obstacle is not None:
                assert found.obstacle.needed > found.obstacle.available, (usable_bytes, found)
