"""What a GPU holds, and the measures that give experts more of it, one after the other."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.errors import DoesNotFit
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.model.host_parts import ALL_ON_GPU
from ernie_local.model.memory_use import chunk_bytes_on_gpu, encoding_bytes
from ernie_local.planner import gpu, gpu_fit
from ernie_local.planner.fit import SLACK_BYTES, AvailableMemory
from ernie_local.planner.gpu import plan_gpu
from ernie_local.planner.gpu_fit import GpuPlacement, least_gpu_total, place_on_gpu
from ernie_local.planner.gpu_need import GpuLayout, GpuNeed
from ernie_local.planner.model_size import ModelSize, published_model, with_formats
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget
from ernie_local.sizes import GIB, MIB

W2 = with_formats(published_model(), FormatChoice("w2"), "--bits 2")
W4 = with_formats(published_model(), FormatChoice("w4"), "--bits 4")
ENOUGH = AvailableMemory(64 * GIB)
CHAT = ChatPlan(8192, "bfloat16", "bfloat16", may_shrink_cache=True)
PAGE = measure_image("page", (1240, 1754), W2.processor)


def need_of(model: ModelSize, chat: ChatPlan = CHAT, chunk_tokens: int | None = None) -> GpuNeed:
    weights = model.weights(chat.item_bytes, in_slots=True)
    return GpuNeed(
        config=model.config, chat=chat, weights=weights, plan=model.paging_plan, chunk_tokens=chunk_tokens
    )


def placed(need: GpuNeed, gib: float, ram: AvailableMemory = ENOUGH) -> GpuPlacement:
    return place_on_gpu(need, ram, AvailableMemory(int(gib * GIB)))


def slots(need: GpuNeed, placement: GpuPlacement) -> int:
    return need.slots_bytes(placement.layout, placement.shared_bytes)


def taken(need: GpuNeed, placement: GpuPlacement) -> int:
    """Of the GPU, by all that is placed there."""
    return need.dense_bytes(placement.layout) + placement.shared_bytes + SLACK_BYTES


def test_measures_are_taken_one_after_the_other_as_a_gpu_gets_smaller() -> None:
    need = need_of(W2, dataclasses.replace(CHAT, context_size=32768))
    seen: list[tuple[bool, str]] = []
    for gib in range(30, 7, -1):
        placement = placed(need, gib / 2)
        state = (placement.swapped_bytes > 0, placement.layout.kv_dtype)
        if placement.paged_bytes is not None and state not in seen:
            seen.append(state)
        assert taken(need, placement) <= gib * GIB / 2
    assert seen == [(False, "bfloat16"), (True, "bfloat16"), (True, "int8")]


def test_a_measure_is_taken_where_experts_would_get_less_than_the_floor_and_nowhere_else() -> None:
    need = need_of(W4)
    floor = gpu_fit._floor_bytes(need)
    assert need.plan is not None
    plain = next(need.layouts())
    enough = need.dense_bytes(plain) + need.cache_bytes(plain) + floor + need.plan.frame_bytes + SLACK_BYTES
    roomy, tight = placed(need, enough / GIB), placed(need, (enough - 2 * need.plan.frame_bytes) / GIB)
    assert (roomy.swapped_bytes, roomy.decisions) == (0, ())
    assert slots(need, roomy) >= floor
    assert tight.swapped_bytes == need.weights.for_images
    assert slots(need, tight) - slots(need, roomy) > 800 * MIB
    assert any(line.startswith("vision tower and resampler: 886.9 MiB in RAM") for line in tight.decisions)


@pytest.mark.parametrize(("kv_dtype", "may_shrink"), [("bfloat16", False), ("float16", False)])
def test_a_number_type_that_was_asked_for_stays(kv_dtype: str, may_shrink: bool) -> None:
    chat = dataclasses.replace(CHAT, kv_dtype=kv_dtype, may_shrink_cache=may_shrink)
    assert placed(need_of(W2, chat), 3.5).layout.kv_dtype == kv_dtype
    assert placed(need_of(W2), 3.5).layout.kv_dtype == "int8"


def test_a_smaller_cache_that_gains_next_to_nothing_is_not_taken() -> None:
    short = dataclasses.replace(CHAT, context_size=1024)
    placement = placed(need_of(W4, short), 4.5)
    assert (placement.layout.kv_dtype, placement.swapped_bytes > 0) == ("bfloat16", True)


def test_chunks_shrink_before_anything_is_refused_unless_one_was_asked_for() -> None:
    need = need_of(W2)
    least = least_gpu_total(need)
    placement = placed(need, least / GIB)
    assert placement.chunk_tokens == 128
    assert any(line.startswith("prompts: 128 tokens at a time") for line in placement.decisions)
    fixed = need_of(W2, chunk_tokens=2048)
    assert least_gpu_total(fixed) > least
    assert placed(fixed, least_gpu_total(fixed) / GIB).chunk_tokens == 2048


def test_workspace_is_that_of_the_largest_phase() -> None:
    chat = dataclasses.replace(CHAT, images=(PAGE,))
    need, layout = need_of(W2, chat), GpuLayout("int8", True, 2048)
    encoding, chunk = need.encoding_room(layout), need.chunk_room(layout)
    assert max(encoding, chunk) <= need.room_bytes(layout) < max(encoding, chunk) + 2 * MIB
    assert encoding > encoding_bytes(W2.config.vision, [PAGE.patches], chat.item_bytes)
    assert chunk > chunk_bytes_on_gpu(W2.config.text, 2048, 8192, "kernel")
    smaller = dataclasses.replace(layout, chunk_tokens=256)
    assert need.chunk_room(smaller) < chunk / 2
    # What comes later is not smaller than usual.
    tiny = dataclasses.replace(PAGE, patches=4, tokens=1)
    assert need_of(W2, dataclasses.replace(CHAT, images=(tiny,))).encoding_room(layout) == need_of(
        W2
    ).encoding_room(layout)


def test_everything_is_placed_or_one_byte_less_is_refused() -> None:
    for model in (W2, W4, published_model()):
        for chat in (CHAT, dataclasses.replace(CHAT, images=(PAGE, PAGE))):
            need = need_of(model, chat)
            least = least_gpu_total(need)
            assert place_on_gpu(need, ENOUGH, AvailableMemory(least)).paged_bytes is not None
            with pytest.raises(DoesNotFit):
                place_on_gpu(need, ENOUGH, AvailableMemory(least - 1))


def test_a_refusal_names_the_floor_and_what_lowers_it() -> None:
    chat = dataclasses.replace(CHAT, context_size=65536, may_shrink_cache=False, images=(PAGE,))
    need = need_of(W2, chat, chunk_tokens=256)
    with pytest.raises(DoesNotFit) as refused:
        place_on_gpu(need, ENOUGH, AvailableMemory(GIB, limit_name="vram"))
    assert refused.value.what.startswith("the model needs at least")
    first, *others = refused.value.hint.split(", or ")
    limit = re.fullmatch(r'vram="(\d+)MiB"', first)
    assert limit is not None
    assert 0 <= int(limit[1]) * MIB - least_gpu_total(need) < 64 * MIB
    # The cache can go to RAM, whatever its length and type; images pass through the GPU.
    assert others == ["fewer or smaller images"]
    assert least_gpu_total(need_of(W2, dataclasses.replace(chat, images=()), 256)) < least_gpu_total(need)


def test_weights_that_left_the_gpu_take_ram() -> None:
    need = need_of(W2)
    placement = placed(need, 3.5)
    assert placement.host_bytes == placement.swapped_bytes == need.weights.for_images
    assert need.plan is not None
    least = SLACK_BYTES + placement.host_bytes + need.plan.least_bytes
    assert placed(need, 3.5, AvailableMemory(least)).paged_bytes == need.plan.least_bytes
    with pytest.raises(DoesNotFit, match="of RAM are left for experts"):
        placed(need, 3.5, AvailableMemory(least - 1))


def test_an_embedding_that_is_not_the_head_lies_in_ram() -> None:
    tied = need_of(W2)
    text = dataclasses.replace(W2.config.text, tie_word_embeddings=False)
    untied = dataclasses.replace(tied, config=dataclasses.replace(W2.config, text=text))
    layout = next(tied.layouts())
    size = tied.weights.parts["embedding"]
    assert (tied.host_embedding_bytes, untied.host_embedding_bytes) == (0, size)
    assert untied.dense_bytes(layout) == tied.dense_bytes(layout) - size
    assert "a token reads one row" in placed(untied, 8).decisions[0]


LONG = dataclasses.replace(CHAT, context_size=131072)


def test_the_processor_takes_over_no_more_than_lets_it_fit() -> None:
    need = need_of(W2, LONG)
    seen = []
    for gib in (6.0, 5.1, 4.6, 4.2, 3.0, 2.0):
        placement = placed(need, gib)
        layout, left = placement.layout, int(gib * GIB) - SLACK_BYTES
        seen.append(layout.host)
        assert taken(need, placement) <= gib * GIB
        assert need.paged_bytes(layout) <= placement.shared_bytes
        if layout.host.num_layers:
            fewer = layout.host._replace(num_layers=layout.host.num_layers - 1)
            less = dataclasses.replace(layout, host=fewer)
            assert need.dense_bytes(less) + need.paged_bytes(less) > left
    assert seen == sorted(seen)
    assert seen[0] == ALL_ON_GPU
    assert (0, True) in seen
    assert 0 < seen[-2].num_layers < seen[-1].num_layers < 28


def test_layers_that_attend_in_ram_take_weights_and_their_part_of_the_cache_there() -> None:
    need = need_of(W2, LONG)
    placement = placed(need, 3.0)
    layout = placement.layout
    on_gpu = dataclasses.replace(layout, host=ALL_ON_GPU)
    count, weights = layout.host.num_layers, W2.weights(2)
    head, attention = weights.parts["embedding"], weights.parts["attention"]
    # All layers are alike: 16.7 M weights of w8, and int8 keys and values of 131072 tokens.
    assert need.dense_bytes(on_gpu) - need.dense_bytes(layout) == head + attention * count // 28
    rows = 131072 * 2 * 4 * (128 + 4)
    assert need.cache_bytes(layout) == (28 - count) * rows
    assert placement.host_cache_bytes == need.host_cache_bytes(layout) == count * rows
    room = need.host_room_bytes(layout)
    beside = need.weights.for_images + head + attention * count // 28 + count * rows + room
    assert placement.host_bytes == beside
    assert 0 < room < 64 * MIB
    assert placement.paged_bytes == ENOUGH.total - SLACK_BYTES - beside
    lines = [line for line in placement.decisions if "on the CPU" in line or "the CPU computes" in line]
    assert [line.split(":")[0] for line in lines] == ["head", "attention"]
    assert f"{count} of 28 layers" in lines[1]


def test_projections_that_are_not_packed_are_float32_in_ram_in_a_packed_model() -> None:
    plain, mixed = published_model(), with_formats(published_model(), FormatChoice("w4", dense=None), "")
    assert {one.on_host - one.as_is for one in plain.weights(2).projections} == {0}
    for model in (W4, mixed):
        assert sum(one.as_is for one in model.weights(2).projections) == model.weights(2).parts["attention"]
    assert {one.on_host - one.as_is for one in W4.weights(2).projections} == {0}


def test_a_refusal_for_ram_names_the_context_that_lies_there() -> None:
    need = need_of(W2, LONG)
    assert need.plan is not None
    least = SLACK_BYTES + placed(need, 3.0).host_bytes + need.plan.least_bytes
    assert placed(need, 3.0, AvailableMemory(least)).paged_bytes == need.plan.least_bytes
    with pytest.raises(DoesNotFit, match="of RAM are left for experts") as refused:
        placed(need, 3.0, AvailableMemory(least - 1))
    assert "context_size" in refused.value.hint


def test_what_fits_is_not_paged_and_takes_no_measure_but_smaller_chunks() -> None:
    need = need_of(W2)
    whole = placed(need, 12)
    assert (whole.paged_bytes, whole.decisions, whole.layout.kv_dtype) == (None, (), "bfloat16")
    plain = dataclasses.replace(next(need.layouts()), chunk_tokens=128)
    least = need.dense_bytes(plain) + need.resident_bytes(plain) + SLACK_BYTES
    assert placed(need, least / GIB).paged_bytes is None
    assert place_on_gpu(need, ENOUGH, AvailableMemory(least - 1)).paged_bytes is not None


def test_what_is_not_free_is_refused() -> None:
    free = AvailableMemory.of_gpu(6 * GIB, 8 * GIB)
    with pytest.raises(DoesNotFit, match=r"vram is 8\.00 GiB, but 6\.00 GiB are free on the GPU"):
        place_on_gpu(need_of(W4), ENOUGH, free)


@pytest.mark.parametrize(
    ("model", "gib", "context_size", "images", "least_slots"),
    [
        (W2, 3.6, 8192, (PAGE,), int(0.9 * GIB)),
        (W2, 3.6, 32768, (), 1),
        (W2, 5.6, 32768, (PAGE,), int(1.8 * GIB)),
        (W4, 3.6, 4096, (), 1),
    ],
)
def test_what_common_gpus_hold(
    model: ModelSize, gib: float, context_size: int, images: tuple[ImageReport, ...], least_slots: int
) -> None:
    """gib: usable memory of the GPU, with what CUDA takes of it and what is left to others."""
    chat = dataclasses.replace(CHAT, context_size=context_size, images=images)
    plan = plan_gpu(model, chat, int(gib * GIB), Budget(64 * GIB))
    assert plan.tier == "paged"
    assert plan.slots_bytes >= least_slots
    assert plan.vram.peak.best <= gib * GIB


def test_a_gpu_without_products_of_bfloat16_has_the_cache_in_float16() -> None:
    need = dataclasses.replace(need_of(W2), multiplies_bfloat16=False)
    roomy, tight = placed(need, 12), placed(need, 3.5)
    assert roomy.layout.kv_dtype == "float16"
    assert "KV cache: float16, as this GPU has no products of bfloat16" in roomy.decisions
    assert tight.layout.kv_dtype == "int8"
    (line,) = [one for one in tight.decisions if one.startswith("KV cache")]
    assert "in float16" in line
    asked = dataclasses.replace(need, chat=dataclasses.replace(CHAT, may_shrink_cache=False))
    assert placed(asked, 12).layout.kv_dtype == "bfloat16"


def test_a_plan_knows_what_kernels_its_gpu_runs() -> None:
    new, turing, pascal = (
        plan_gpu(W2, CHAT, 12 * GIB, Budget(64 * GIB), capability) for capability in (None, (7, 5), (6, 1))
    )
    assert [plan.chat.kv_dtype for plan in (new, turing, pascal)] == ["bfloat16", "float16", "float16"]
    # Without Triton a chunk attends in pieces.
    ways = [gpu._need(W2, CHAT, capability).attention for capability in (None, (7, 5), (6, 1))]
    assert ways == ["kernel", "kernel", "pieces"]
