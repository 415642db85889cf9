"""Whether experts are paged, how much memory they get, and what is refused: by numbers alone."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit
from ernie_local.media.image_size import ImageReport
from ernie_local.model.memory_use import attention_bytes, encoding_bytes
from ernie_local.planner.fit import (
    AvailableMemory,
    Placement,
    default_reserve,
    headroom_bytes,
    least_total,
    longest_context,
    place,
    resident_total,
)
from ernie_local.planner.need import ChatPlan, MemoryNeed, gpu_room, working_bytes
from ernie_local.sizes import GIB, MIB

NANO = read_config(NANO_DIRECTORY)
CONFIG = dataclasses.replace(
    NANO.text,
    hidden_size=2560,
    intermediate_size=12288,
    banks=(dataclasses.replace(NANO.text.bank("text"), expert_size=1536), NANO.text.bank("vision")),
    experts_per_token=6,
    num_shared_experts=2,
)
NEED = MemoryNeed(
    config=CONFIG,
    dense_bytes=2 * GIB,
    expert_bytes=10 * GIB,
    least_expert_bytes=100 * MIB,
    cache_bytes=GIB,
)
PROCESS = 300 * MIB
# As of the full size in four bits.
ROOM = 1400 * MIB
GPU_NEED = MemoryNeed(
    config=NANO.text,
    dense_bytes=1500 * MIB,
    expert_bytes=14 * GIB,
    least_expert_bytes=300 * MIB,
    cache_bytes=900 * MIB,
    room_bytes=ROOM,
)


def ram(limit: int | None, reserve: int = GIB, free: int = 16 * GIB) -> AvailableMemory:
    return AvailableMemory.of_ram(limit, reserve, used=PROCESS, free=free)


def placed(limit: int | None, need: MemoryNeed = NEED, reserve: int = GIB, free: int = 16 * GIB) -> Placement:
    return place(need, ram(limit, reserve, free))


def all_bytes(chunk_tokens: int = 2048) -> int:
    """What everything takes with all experts in memory."""
    resident = NEED.weight_bytes + NEED.cache_bytes
    return PROCESS + 128 * MIB + working_bytes(CONFIG, chunk_tokens) + resident


def test_the_working_memory_is_as_measured() -> None:
    """0.25 MiB a token, between 256 and 2048 tokens, with the 28B model's sizes."""
    assert working_bytes(CONFIG, 2048) == pytest.approx(510 * MIB, rel=0.1)


def test_all_experts_are_resident_where_they_fit_and_not_a_byte_below() -> None:
    assert placed(all_bytes()) == Placement(None, 2048)
    assert placed(all_bytes() - 1).paged_bytes == NEED.expert_bytes + NEED.cache_bytes - 1


def test_what_resident_experts_and_the_largest_prompt_leave_is_spare() -> None:
    assert [placed(all_bytes() + more).spare_bytes for more in (0, 5)] == [0, 5]
    assert placed(all_bytes() - 1).spare_bytes == 0
    pictured = dataclasses.replace(NEED, prompt_bytes=2 * GIB)
    for need in (pictured, dataclasses.replace(pictured, least_expert_bytes=None)):
        spare = [placed(all_bytes() + 2 * GIB + more, need).spare_bytes for more in (0, 7)]
        assert spare == [0, 7]


def test_experts_stay_resident_where_the_largest_prompt_has_room_beside_them() -> None:
    """Resident experts cannot give way to an image, paged ones can: the limit holds with both."""
    pictured = dataclasses.replace(NEED, prompt_bytes=2 * GIB)
    assert placed(all_bytes() + 2 * GIB, pictured) == Placement(None, 2048)
    assert resident_total(pictured, PROCESS) == all_bytes() + 2 * GIB
    paged = placed(all_bytes() + 2 * GIB - 1, pictured)
    assert paged.paged_bytes == NEED.expert_bytes + NEED.cache_bytes + 2 * GIB - 1
    # Nothing can give way in a model without pages.
    unpaged = dataclasses.replace(pictured, least_expert_bytes=None)
    assert placed(all_bytes(), unpaged) == Placement(None, 2048)


def test_without_a_limit_a_conversation_is_expected_to_have_a_usual_length() -> None:
    """Half of a cache for 8192 tokens, all of one for 1024."""
    free = all_bytes() - PROCESS + GIB  # the reserve is a GiB
    long = dataclasses.replace(NEED, context_size=8192)
    assert placed(None, long, free=free - GIB // 2).paged_bytes is None
    assert placed(None, long, free=free - GIB // 2 - 1).paged_bytes is not None
    short = dataclasses.replace(NEED, context_size=1024)
    assert placed(None, short, free=free).paged_bytes is None
    assert placed(None, short, free=free - 1).paged_bytes is not None
    # Paged experts make room for attention as well: below that the limit is refused.
    unpaged = PROCESS + NEED.dense_bytes + 128 * MIB + 100 * MIB + GIB // 2 + working_bytes(CONFIG, 128)
    least = unpaged + attention_bytes(CONFIG, 128, 4096, "masks") - PROCESS + GIB
    assert placed(None, long, free=least).chunk_tokens == 128
    with pytest.raises(DoesNotFit):
        placed(None, long, free=least - 1)


def test_less_memory_makes_smaller_chunks() -> None:
    assert [placed(size * GIB).chunk_tokens for size in (13, 8, 4)] == [2048, 2048, 512]
    assert placed(4 * GIB, dataclasses.replace(NEED, chunk_tokens=1024)).chunk_tokens == 1024


def test_below_the_floor_the_limit_that_fits_is_named() -> None:
    with pytest.raises(DoesNotFit, match=r"at least 3\.\d+ GiB of memory, ram is 3\.0") as caught:
        placed(3 * GIB)
    named = re.search(r'ram="(\d+)MiB"', caught.value.hint)
    assert named is not None
    limit = int(named[1])
    assert placed(limit * MIB).paged_bytes is not None
    with pytest.raises(DoesNotFit):
        placed((limit - 64) * MIB)


def test_without_a_limit_the_free_memory_less_the_reserve_is_taken() -> None:
    assert placed(None) == Placement(None, 2048)
    small = placed(None, reserve=8 * GIB)
    assert small.paged_bytes is not None
    taken = NEED.dense_bytes + 128 * MIB + working_bytes(CONFIG, small.chunk_tokens) + small.paged_bytes
    assert taken == 8 * GIB
    with pytest.raises(DoesNotFit, match=r"300\.0 MiB are available"):
        placed(None, free=GIB)


@pytest.mark.parametrize(
    ("there", "reserve"), [(64 * GIB, 2 * GIB), (14 * GIB, 2 * GIB), (7 * GIB, GIB), (0, 0)]
)
def test_the_reserve_shrinks_with_the_memory_that_there_is(there: int, reserve: int) -> None:
    assert default_reserve(there) == reserve
    memory = AvailableMemory.of_ram(None, None, used=there // 4, free=there - there // 4)
    assert memory.total == there - reserve


def test_a_refusal_names_the_reserve_and_the_limit_that_would_do() -> None:
    need = dataclasses.replace(NEED, context_size=4096)
    least = least_total(need, PROCESS)
    with pytest.raises(DoesNotFit) as caught:
        placed(None, need, reserve=GIB, free=least - PROCESS + 64 * MIB)
    reserve, limit = (int(found) for found in re.findall(r'(?:reserve|ram)="(\d+)MiB"', caught.value.hint))
    assert (reserve, limit) == (64, -(-least // MIB))
    assert placed(None, need, reserve=reserve * MIB, free=least - PROCESS + 64 * MIB).paged_bytes
    assert placed(limit * MIB, need).paged_bytes
    # Where all that is free is too little, neither helps.
    with pytest.raises(DoesNotFit) as caught:
        placed(None, need, reserve=GIB, free=least - PROCESS - 1)
    assert "reserve=" not in caught.value.hint
    assert "limit of the container" in caught.value.hint


def test_a_limit_above_what_is_free_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"ram is 4\.00 GiB, .* 2\.00 GiB are free"):
        placed(4 * GIB, free=2 * GIB)


def test_a_second_memory_has_what_every_token_reads_and_experts_what_is_left() -> None:
    split = place(NEED, ram(5 * GIB), AvailableMemory(6 * GIB))
    beside = NEED.dense_bytes + working_bytes(CONFIG, 1024) + 128 * MIB
    assert split == Placement(5 * GIB - PROCESS - 128 * MIB, 1024, 6 * GIB - beside)
    assert place(NEED, ram(None), AvailableMemory(6 * GIB)).paged_bytes == 15 * GIB - 128 * MIB
    everything = all_bytes() - PROCESS
    assert place(NEED, ram(1), AvailableMemory(everything)) == Placement(None, 2048)
    assert place(NEED, ram(5 * GIB), AvailableMemory(everything - 1)).gpu_bytes is not None


def test_a_gpu_or_a_memory_below_it_that_is_too_small_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"vram is 3\.00 GiB") as refused:
        place(NEED, ram(5 * GIB), AvailableMemory(3 * GIB, limit_name="vram"))
    assert 'vram="3' in refused.value.hint
    least = PROCESS + 128 * MIB + 100 * MIB
    assert place(NEED, ram(least), AvailableMemory(6 * GIB)).paged_bytes == 100 * MIB
    with pytest.raises(DoesNotFit, match=r"99\.0 MiB .* 100\.0 MiB") as refused:
        place(NEED, ram(least - MIB), AvailableMemory(6 * GIB))
    assert refused.value.hint.startswith(f'ram="{least // MIB}MiB"')


def test_a_model_without_pages_gets_smaller_chunks_and_is_never_paged() -> None:
    unpaged = dataclasses.replace(NEED, least_expert_bytes=None)
    assert placed(all_bytes() - 1, unpaged) == Placement(None, 1024)
    with pytest.raises(DoesNotFit):
        placed(8 * GIB, unpaged)


# a GPU


def on_gpu(
    gpu_free: int, vram_limit: int | None = None, need: MemoryNeed = GPU_NEED, ram_limit: int | None = None
) -> Placement:
    return place(
        need, ram(ram_limit, reserve=0), AvailableMemory.of_gpu(gpu_free, vram_limit, headroom=512 * MIB)
    )


def test_on_a_gpu_experts_get_what_is_left_by_all_else() -> None:
    placement = on_gpu(8 * GIB)
    assert placement.gpu_bytes is not None
    assert placement.paged_bytes is not None
    assert (placement.gpu_room_bytes, placement.gpu_cache_bytes) == (ROOM, GPU_NEED.cache_bytes)
    assert placement.paged_bytes > 14 * GIB
    taken = GPU_NEED.dense_bytes + ROOM + placement.gpu_bytes
    assert 8 * GIB - 512 * MIB - 256 * MIB < taken <= 8 * GIB - 512 * MIB
    limited = on_gpu(8 * GIB, 6 * GIB)
    assert limited.gpu_bytes is not None
    assert abs(placement.gpu_bytes - limited.gpu_bytes - 1536 * MIB) < 64 * MIB


def test_experts_get_less_of_a_gpu_by_what_is_kept_for_unpacking() -> None:
    unpacking = dataclasses.replace(GPU_NEED, scratch_bytes=100 * MIB, chunk_tokens=2048)
    without = on_gpu(8 * GIB, need=dataclasses.replace(GPU_NEED, chunk_tokens=2048)).gpu_bytes
    assert without is not None
    assert on_gpu(8 * GIB, need=unpacking).gpu_bytes == without - 100 * MIB
    assert unpacking.weight_bytes == GPU_NEED.weight_bytes


def test_what_fits_on_a_gpu_is_not_paged() -> None:
    small = dataclasses.replace(
        GPU_NEED,
        dense_bytes=100 * MIB,
        expert_bytes=200 * MIB,
        cache_bytes=50 * MIB,
        least_expert_bytes=20 * MIB,
    )
    assert on_gpu(4 * GIB, need=small).paged_bytes is None
    assert on_gpu(4 * GIB, 8 * GIB, need=small).paged_bytes is None


def test_what_does_not_fit_on_a_gpu_is_refused_with_both_numbers() -> None:
    with pytest.raises(DoesNotFit, match=r"vram is 8\.00 GiB, but 6\.00 GiB are free on the GPU"):
        on_gpu(6 * GIB, 8 * GIB)
    with pytest.raises(DoesNotFit, match=r"of memory, vram is 3\.00 GiB"):
        on_gpu(8 * GIB, 3 * GIB)
    with pytest.raises(DoesNotFit, match=r"of memory, 2\.50 GiB are available"):
        on_gpu(3 * GIB)
    with pytest.raises(DoesNotFit, match=r"0 bytes of RAM .* 300\.0 MiB are needed"):
        on_gpu(8 * GIB, ram_limit=1 * MIB)


@pytest.mark.parametrize(
    ("system", "release", "headroom"),
    [
        ("linux", "6.8.0-generic", 512 * MIB),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", GIB),
        ("win32", "11", GIB),
    ],
)
def test_windows_gets_more_headroom(system: str, release: str, headroom: int) -> None:
    assert headroom_bytes(system, release) == headroom


def test_room_is_kept_for_an_image_and_for_attention() -> None:
    room = gpu_room(NANO, ChatPlan(4096, "bfloat16", "bfloat16"))
    assert room > encoding_bytes(NANO.vision, [5000])
    for way in ("kernel", "pieces"):
        assert gpu_room(NANO, ChatPlan(1 << 17, "bfloat16", "bfloat16"), 2048, way) == room
    size = (1792, 1792)
    image = ImageReport("large", size, size, patches=16384, tokens=4096)
    pictured = ChatPlan(512, "bfloat16", "bfloat16", (image, image))
    assert gpu_room(NANO, pictured) > encoding_bytes(NANO.vision, [16384])
    assert gpu_room(NANO, pictured) > gpu_room(NANO, ChatPlan(512, "bfloat16", "bfloat16"))
    # What comes later is not smaller than usual.
    small = ImageReport("small", (28, 28), (28, 28), patches=4, tokens=1)
    assert gpu_room(NANO, ChatPlan(4096, "bfloat16", "bfloat16", (small,))) == room


# searches


@pytest.mark.parametrize("most_that_fits", [1024, 5000, 7168, 131072])
def test_the_longest_context_is_found(most_that_fits: int) -> None:
    asked: list[int] = []

    def fits(context_size: int) -> bool:
        asked.append(context_size)
        return context_size <= most_that_fits

    assert longest_context(131072, fits) == most_that_fits // 1024 * 1024
    assert len(asked) < 12
    assert longest_context(131072, lambda context_size: False) is None
    assert longest_context(3000, lambda context_size: True) == 3000
