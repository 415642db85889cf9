"""Whether experts are paged, how much memory they get, and what is refused: by numbers alone."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import attention_bytes, working_bytes
from ernie_local.planner.fit import (
    AvailableMemory,
    Placement,
    default_reserve,
    headroom_bytes,
    least_total,
    longest_context,
    most_parallel,
    place,
    resident_total,
)
from ernie_local.planner.need import MemoryNeed
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


def test_a_model_without_pages_gets_smaller_chunks_and_is_never_paged() -> None:
    unpaged = dataclasses.replace(NEED, least_expert_bytes=None)
    assert placed(all_bytes() - 1, unpaged) == Placement(None, 1024)
    with pytest.raises(DoesNotFit):
        placed(8 * GIB, unpaged)


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


def need_of(parallel: int, expert_bytes: int = 10 * GIB, cache_bytes: int = GIB // 4) -> MemoryNeed:
    return dataclasses.replace(
        NEED,
        expert_bytes=expert_bytes,
        text_expert_bytes=expert_bytes * 3 // 4,
        cache_bytes=parallel * cache_bytes,
        parallel=parallel,
    )


def test_chats_at_once_leave_resident_experts_resident() -> None:
    just_three = 2 * GIB + 10 * GIB + 3 * (GIB // 4) + PROCESS + 128 * MIB + working_bytes(CONFIG, 2048)
    for limit, expected in ((just_three - MIB, 2), (just_three, 3), (60 * GIB, 8)):
        memory = ram(limit, free=64 * GIB)
        assert most_parallel(need_of, memory, 8) == expected
        assert place(need_of(expected), memory).paged_bytes is None


def test_chats_at_once_leave_paged_experts_most_of_their_memory() -> None:
    for limit in (4 * GIB, 6 * GIB, 8 * GIB, 10 * GIB):
        memory = ram(limit)

        def slots(parallel: int, memory: AvailableMemory = memory) -> int:
            need = need_of(parallel)
            placement = place(need, memory)
            assert placement.paged_bytes is not None
            beside = need.cache_bytes + parallel * attention_bytes(CONFIG, 0, 0, "masks")
            return min(placement.paged_bytes - beside, need.text_expert_bytes)

        count = most_parallel(need_of, memory, 8)
        assert slots(count) >= 0.8 * slots(1)
        assert count == 8 or slots(count + 1) < 0.8 * slots(1)
    with pytest.raises(DoesNotFit):
        most_parallel(need_of, ram(GIB), 8)
