"""Plans for RAM and for GPUs: phases and peaks, what `load` would decide, the search for what fits."""

from __future__ import annotations

import dataclasses
import random

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.errors import DoesNotFit
from ernie_local.media.image_size import measure_image
from ernie_local.model.memory_use import encoding_bytes
from ernie_local.planner.fit import AvailableMemory, default_reserve, headroom_bytes, longest_context, place
from ernie_local.planner.gpu import plan_gpu
from ernie_local.planner.gpu_fit import place_on_gpu
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.model_size import ModelSize, published_model, with_formats
from ernie_local.planner.need import ChatPlan, MemoryNeed
from ernie_local.planner.ram import PROCESS, Budget, CpuPlan, plan_cpu
from ernie_local.planner.terms import PHASES, Amount, MemoryPlan, Term
from ernie_local.sizes import GIB, MIB
from tests.draws import rest_slow

W4 = with_formats(published_model(), FormatChoice(), "--bits 4")
W2 = with_formats(published_model(), FormatChoice("w2", "w4"), "--bits 2")
SHORT = ChatPlan(1024, "float32", "bfloat16")
SHORT_ON_GPU = ChatPlan(1024, "bfloat16", "bfloat16")


def with_image(conversation: ChatPlan, size: tuple[int, int] = (1240, 1754)) -> ChatPlan:
    return dataclasses.replace(conversation, images=(measure_image("page", size, W4.processor),))


def short_need() -> MemoryNeed:
    need = MemoryNeed.of_weights(W4.config.text, W4.weights(4), W4.paging_plan)
    return dataclasses.replace(need, cache_bytes=1024 * 57344)


def best(plan: CpuPlan, name: str) -> dict[str, int]:
    return next(
        {phase: amount.best for phase, amount in term.phases.items()}
        for term in plan.memory.terms
        if term.name == name
    )


def test_the_peak_is_the_largest_phase_and_not_the_sum() -> None:
    terms = (
        Term.always("weights", "exact", Amount.exactly(100)),
        Term("tower", "measured", {"vision": Amount(40, 50, 70)}),
        Term("chunk", "measured", {"prefill": Amount(30, 40, 90)}),
    )
    plan = MemoryPlan("ram", terms, 150)
    assert [plan.phase(phase).best for phase in PHASES] == [100, 150, 140, 100]
    assert (plan.peak_phase, plan.peak) == ("vision", Amount(140, 150, 170))
    assert plan.fits
    assert not dataclasses.replace(plan, limit_bytes=149).fits


@pytest.mark.parametrize("limit", [4 * GIB, 8 * GIB, 14 * GIB, 18 * GIB])
def test_experts_go_where_load_puts_them(limit: int) -> None:
    plan = plan_cpu(W4, SHORT, Budget(limit))
    weights, need = W4.weights(4), short_need()
    expected = place(need, AvailableMemory(limit, PROCESS.best, "ram"))
    assert plan.placement == expected
    assert plan.fits
    assert plan.memory.peak.best <= limit
    if expected.paged_bytes is None:
        assert plan.slots_bytes is None
        assert best(plan, "text experts")["decode"] == weights.parts["text experts"]
    else:
        # But for the slack that the runtime leaves, and half of a chunk of 2048 tokens, all is used.
        assert plan.memory.peak.best > limit - 400 * MIB
        assert 0 < plan.resident_share <= 1


def test_the_least_limit_is_taken_and_less_is_refused() -> None:
    plan = plan_cpu(W4, SHORT, Budget(GIB))
    assert not plan.fits
    assert plan_cpu(W4, SHORT, Budget(plan.least_bytes)).fits
    assert not plan_cpu(W4, SHORT, Budget(plan.least_bytes - 1)).fits
    assert plan_cpu(W4, SHORT, Budget(plan.resident_bytes)).slots_bytes is None
    assert plan_cpu(W4, SHORT, Budget(plan.resident_bytes - 1)).slots_bytes is not None


def test_a_image_that_the_experts_of_one_token_leave_no_room_for_does_not_fit() -> None:
    plain = ChatPlan(4096, "float32", "bfloat16")
    pictured = with_image(plain)
    least = plan_cpu(W4, pictured, Budget(3 * GIB)).least_bytes
    assert plan_cpu(W4, plain, Budget(3 * GIB)).fits
    assert not plan_cpu(W4, pictured, Budget(3 * GIB)).fits
    assert 3 * GIB < least < 4 * GIB
    assert plan_cpu(W4, pictured, Budget(least)).fits
    assert not plan_cpu(W4, pictured, Budget(least - 2 * MIB)).fits


def test_without_a_limit_the_free_memory_counts_as_load_counts_it() -> None:
    """The command is small, and what it measures as free is taken by the process that loads."""
    plan, need = plan_cpu(W4, SHORT, Budget(None, free_bytes=9 * GIB)), short_need()
    found = {"used": PROCESS.best, "free": 9 * GIB - PROCESS.best}
    assert plan.placement == place(need, AvailableMemory.of_ram(None, None, **found))
    assert plan.memory.limit_bytes == 9 * GIB - default_reserve(9 * GIB)
    with pytest.raises(DoesNotFit):
        place(need, AvailableMemory.of_ram(None, 8 * GIB, **found))
    assert not plan_cpu(W4, SHORT, Budget(None, 9 * GIB, reserve_bytes=8 * GIB)).fits


def test_images_take_memory_in_the_phases_in_which_they_are_there() -> None:
    plain = plan_cpu(W4, ChatPlan(4096, "float32", "bfloat16"), Budget(None))
    pictured = plan_cpu(W4, with_image(ChatPlan(4096, "float32", "bfloat16")), Budget(None))
    more = pictured.memory.phase("vision").best - plain.memory.phase("vision").best
    assert more > encoding_bytes(W4.config.vision, [11088]) // 2
    assert plain.memory.peak_phase == pictured.memory.peak_phase == "prefill"
    assert set(best(pictured, "vision tower at work")) == {"vision"}
    pixels = best(pictured, "patches of images")
    assert pixels["prefill"] == pixels["decode"] == 11088 * 588 * 4
    # An image that comes late finds the cache full: that is the high end.
    vision = pictured.memory.phase("vision")
    assert vision.high - vision.best >= best(pictured, "KV cache")["prefill"]


def test_paged_experts_make_room_for_a_image_and_for_the_cache() -> None:
    slots = best(plan_cpu(W4, with_image(ChatPlan(8192, "float32", "bfloat16")), Budget(8 * GIB)), (
        "slots of paged experts"
    ))  # fmt: skip
    # Pixels, features and a chunk of both banks are there until the prompt has been read.
    assert slots["vision"] < slots["prefill"] < slots["decode"]
    assert "load" not in slots
    longer = best(plan_cpu(W4, ChatPlan(16384, "float32", "bfloat16"), Budget(8 * GIB)), (
        "slots of paged experts"
    ))  # fmt: skip
    assert longer["decode"] < slots["decode"]


@pytest.mark.parametrize(
    ("gib", "tier"),
    [(2, "does not fit"), (2.5, "paged"), (4, "paged"), (6, "paged"), (12, "paged"), (24, "resident")],
)
def test_a_gpu_holds_everything_or_slots_or_nothing(gib: float, tier: str) -> None:
    plan = plan_gpu(W4, SHORT_ON_GPU, int(gib * GIB), Budget(64 * GIB))
    assert plan.tier == tier
    assert plan.fits == (tier in ("paged", "resident"))
    if tier == "paged":
        assert plan.vram.peak.best <= gib * GIB
        assert plan.host_bytes > W4.weights(2).experts
        assert plan_gpu(W4, SHORT_ON_GPU, int(gib * GIB), Budget(8 * GIB)).tier == "paged from disk"
        for ram, there in ((plan.host_bytes, "paged"), (plan.host_least_bytes, "paged from disk")):
            assert plan_gpu(W4, SHORT_ON_GPU, int(gib * GIB), Budget(ram)).tier == there
        less = plan_gpu(W4, SHORT_ON_GPU, int(gib * GIB), Budget(plan.host_least_bytes - 1))
        assert (less.tier, less.fits) == ("needs ram", False)
    if tier == "does not fit":
        assert plan_gpu(W4, SHORT_ON_GPU, plan.least_bytes, Budget(64 * GIB)).tier == "paged"
        assert plan_gpu(W4, SHORT_ON_GPU, plan.least_bytes - 1, Budget(64 * GIB)).tier == "does not fit"


def test_experts_on_a_gpu_give_way_to_the_cache_as_it_grows() -> None:
    plan = plan_gpu(W4, ChatPlan(32768, "bfloat16", "bfloat16"), 8 * GIB, Budget(64 * GIB))
    terms = {term.name: term.phases for term in plan.vram.terms}
    cache, slots = terms["KV cache"], terms["slots of experts"]
    assert (cache["load"].best, cache["decode"].best) == (1024 * 57344, 32768 * 57344)
    paging = W4.paging_plan
    assert paging is not None
    given = slots["load"].best - slots["decode"].best
    assert abs(given - 31 * 1024 * 57344) <= paging.frame_bytes
    assert plan.slots_bytes == slots["decode"].best


@pytest.mark.parametrize("context_size", [1000, 32768])
def test_a_gpu_is_shared_out_as_load_does_it(context_size: int) -> None:
    chat, paging = ChatPlan(context_size, "bfloat16", "int8"), W4.paging_plan
    weights = W4.weights(2, in_slots=True)
    need = GpuNeed(config=W4.config, chat=chat, weights=weights, plan=paging)
    expected = place_on_gpu(need, AvailableMemory(1 << 60), AvailableMemory.of_gpu(8 * GIB - 450 * MIB))
    plan = plan_gpu(W4, chat, 8 * GIB, Budget(64 * GIB))
    assert plan.slots_bytes == need.slots_bytes(expected.layout, expected.shared_bytes) > 0
    assert plan.vram.peak.best <= 8 * GIB - headroom_bytes()


def test_fewer_bits_leave_more_experts_on_a_gpu() -> None:
    shares = [
        plan_gpu(model, SHORT_ON_GPU, 8 * GIB, Budget(64 * GIB)).resident_share
        for model in (published_model(), W4, W2)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.2 < shares[1] < 0.5 < shares[2]


def test_every_term_says_where_it_comes_from() -> None:
    models: list[ModelSize] = [W4, W2, published_model()]
    for model in models:
        plans = [plan_cpu(model, with_image(SHORT, (640, 480)), Budget(8 * GIB)).memory]
        plans.append(plan_gpu(model, with_image(SHORT_ON_GPU, (640, 480)), 8 * GIB, Budget(64 * GIB)).vram)
        for plan in plans:
            names = [term.name for term in plan.terms]
            assert len(set(names)) == len(names)
            for term in plan.terms:
                if term.provenance == "exact":
                    assert all(amount.low == amount.high for amount in term.phases.values()), term
                assert all(amount.low <= amount.best <= amount.high for amount in term.phases.values()), term


@pytest.mark.parametrize("seed", rest_slow(range(40), 10))
def test_where_one_context_does_not_fit_no_longer_one_does(seed: int) -> None:
    """What the search for the longest context assumes: at random limits and at those where a plan changes."""
    draw = random.Random(seed)
    model, on_gpu = draw.choice((W4, W2, published_model())), draw.random() < 0.5
    dtype = "bfloat16" if on_gpu or model.config.quantization is None else "float32"
    chat = ChatPlan(1024, dtype, draw.choice(("bfloat16", "int8")))
    if draw.random() < 0.5:
        chat = with_image(chat)
    least = -(-(chat.image_tokens + 512) // 1024) * 1024
    sizes = range(least, model.config.text.max_position_embeddings + 1, 1024)
    limit = int(draw.uniform(2.5, 16) * GIB)
    if draw.random() < 0.7:
        longer = dataclasses.replace(chat, context_size=draw.choice(sizes))
        if on_gpu:
            limit = plan_gpu(model, longer, limit, Budget(64 * GIB)).vram.peak.best
        else:
            plan = plan_cpu(model, longer, Budget(limit))
            limit = draw.choice((plan.memory.peak.best, plan.least_bytes, plan.resident_bytes))
        limit += draw.choice((-30, -1, 0, 1, 30)) * MIB

    def fits(context_size: int) -> bool:
        longer = dataclasses.replace(chat, context_size=context_size)
        if on_gpu:
            gpu = plan_gpu(model, longer, limit, Budget(64 * GIB))
            return gpu.fits and gpu.vram.fits
        cpu = plan_cpu(model, longer, Budget(limit))
        return cpu.fits and cpu.memory.fits

    fitting = [size for size in sizes if fits(size)]
    assert longest_context(sizes[-1], fits, least) == (fitting[-1] if fitting else None)
    assert fitting == list(sizes[: len(fitting)])
