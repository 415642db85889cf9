"""Whether experts are paged, how much memory they get, and what is refused: by numbers alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import attention_bytes
from ernie_local.planner import free_memory
from ernie_local.planner import placement as memory
from ernie_local.planner.placement import (
    MemoryNeed,
    Placement,
    place_in_ram,
    place_on_gpu,
    resident_limit,
    working_bytes,
)
from ernie_local.sizes import GIB, MIB

_NANO = read_config(NANO_DIRECTORY).text
CONFIG = dataclasses.replace(
    _NANO,
    hidden_size=2560,
    intermediate_size=12288,
    banks=(dataclasses.replace(_NANO.bank("text"), expert_size=1536), _NANO.bank("vision")),
    experts_per_token=6,
    num_shared_experts=2,
)
NEED = MemoryNeed(2 * GIB, 10 * GIB, kv_cache_bytes=GIB, least_expert_bytes=100 * MIB)
PROCESS = 300 * MIB


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "process_memory", lambda: PROCESS)
    monkeypatch.setattr(memory, "free_memory", lambda: 16 * GIB)


def all_bytes(chunk_tokens: int = 2048) -> int:
    """What everything takes with all experts in memory."""
    resident = NEED.weight_bytes + NEED.kv_cache_bytes
    return PROCESS + 128 * MIB + working_bytes(CONFIG, chunk_tokens) + resident


def test_the_working_memory_is_as_measured() -> None:
    """0.25 MiB a token, between 256 and 2048 tokens, with the 28B model's sizes."""
    assert working_bytes(CONFIG, 2048) == pytest.approx(510 * MIB, rel=0.1)


def test_all_experts_are_resident_where_they_fit_and_not_a_byte_below() -> None:
    assert place_in_ram(NEED, CONFIG, all_bytes()) == Placement(None, 2048)
    paged = place_in_ram(NEED, CONFIG, all_bytes() - 1)
    assert paged.paged_bytes == NEED.expert_bytes + NEED.kv_cache_bytes - 1


def test_experts_stay_resident_where_the_largest_prompt_has_room_beside_them() -> None:
    """Resident experts cannot give way to an image, paged ones can: the limit holds with both."""
    pictured = dataclasses.replace(NEED, prompt_bytes=2 * GIB)
    assert place_in_ram(pictured, CONFIG, all_bytes() + 2 * GIB) == Placement(None, 2048)
    assert resident_limit(pictured, CONFIG, PROCESS) == all_bytes() + 2 * GIB
    paged = place_in_ram(pictured, CONFIG, all_bytes() + 2 * GIB - 1)
    assert paged.paged_bytes == NEED.expert_bytes + NEED.kv_cache_bytes + 2 * GIB - 1
    # Nobody can give way in a model without pages.
    unpaged = dataclasses.replace(pictured, least_expert_bytes=None)
    assert place_in_ram(unpaged, CONFIG, all_bytes()) == Placement(None, 2048)


def test_where_nobody_named_a_limit_a_conversation_is_taken_to_have_a_usual_length() -> None:
    """Half of a cache for 8192 tokens, all of one for 1024."""
    free = all_bytes() - PROCESS + GIB  # the reserve is a GiB
    long = dataclasses.replace(NEED, context_size=8192)
    assert place_in_ram(long, CONFIG, None, free=free - GIB // 2).paged_bytes is None
    assert place_in_ram(long, CONFIG, None, free=free - GIB // 2 - 1).paged_bytes is not None
    short = dataclasses.replace(NEED, context_size=1024)
    assert place_in_ram(short, CONFIG, None, free=free).paged_bytes is None
    assert place_in_ram(short, CONFIG, None, free=free - 1).paged_bytes is not None
    # Paged experts make room for attention as well: below that the limit is refused.
    unpaged = PROCESS + NEED.dense_bytes + 128 * MIB + 100 * MIB + GIB // 2 + working_bytes(CONFIG, 128)
    least = unpaged + attention_bytes(CONFIG, 128, 4096) - PROCESS + GIB
    assert place_in_ram(long, CONFIG, None, free=least).chunk_tokens == 128
    with pytest.raises(DoesNotFit):
        place_in_ram(long, CONFIG, None, free=least - 1)


def test_less_memory_makes_smaller_chunks() -> None:
    chunks = [place_in_ram(NEED, CONFIG, size * GIB).chunk_tokens for size in (13, 8, 4)]
    assert chunks == [2048, 2048, 512]
    assert place_in_ram(NEED, CONFIG, 4 * GIB, chunk_tokens=1024).chunk_tokens == 1024


def test_below_the_floor_the_limit_that_fits_is_named() -> None:
    with pytest.raises(
        DoesNotFit, match=r"the model needs 3\.\d+ GiB of memory at least, the ram limit is 3\.0"
    ) as caught:
        place_in_ram(NEED, CONFIG, 3 * GIB)
    words = str(caught.value).split()
    limit = int(words[words.index("ram", words.index("try:")) + 1].removesuffix("MiB,"))
    assert place_in_ram(NEED, CONFIG, limit * MIB).paged_bytes is not None
    with pytest.raises(DoesNotFit):
        place_in_ram(NEED, CONFIG, (limit - 64) * MIB)


def test_without_a_limit_the_free_memory_less_the_reserve_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in_ram(NEED, CONFIG, None) == Placement(None, 2048)
    small = place_in_ram(NEED, CONFIG, None, reserve=8 * GIB)
    assert small.paged_bytes is not None
    taken = NEED.dense_bytes + 128 * MIB + working_bytes(CONFIG, small.chunk_tokens) + small.paged_bytes
    assert taken == 8 * GIB
    monkeypatch.setattr(memory, "free_memory", lambda: GIB)
    with pytest.raises(DoesNotFit, match="can be had"):
        place_in_ram(NEED, CONFIG, None)


def test_a_limit_above_what_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * GIB)
    with pytest.raises(DoesNotFit, match=r"the ram limit is 4\.00 GiB, .* 2\.00 GiB are free"):
        place_in_ram(NEED, CONFIG, 4 * GIB)


def test_a_gpu_has_what_every_token_reads_and_experts_what_is_left() -> None:
    placed = place_on_gpu(NEED, CONFIG, 6 * GIB, 5 * GIB)
    beside = NEED.dense_bytes + working_bytes(CONFIG, 1024) + 128 * MIB
    assert placed == Placement(5 * GIB - PROCESS - 128 * MIB, 1024, 6 * GIB - beside)
    free = place_on_gpu(NEED, CONFIG, 6 * GIB, None, reserve=GIB)
    assert free.paged_bytes == 15 * GIB - 128 * MIB
    everything = all_bytes() - PROCESS
    assert place_on_gpu(NEED, CONFIG, everything, 1) == Placement(None, 2048)
    assert place_on_gpu(NEED, CONFIG, everything - 1, 5 * GIB).gpu_bytes is not None


def test_a_gpu_or_a_memory_below_it_that_is_too_small_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"the vram limit is 3\.00 GiB") as refused:
        place_on_gpu(NEED, CONFIG, 3 * GIB, 5 * GIB)
    assert "vram 3" in refused.value.hint
    least = PROCESS + 128 * MIB + 100 * MIB
    assert place_on_gpu(NEED, CONFIG, 6 * GIB, least).paged_bytes == 100 * MIB
    with pytest.raises(DoesNotFit, match=r"99\.0 MiB of memory are left for experts beside the GPU"):
        place_on_gpu(NEED, CONFIG, 6 * GIB, least - MIB)


def test_a_model_without_pages_gets_smaller_chunks_and_is_never_paged() -> None:
    unpaged = dataclasses.replace(NEED, least_expert_bytes=None)
    assert place_in_ram(unpaged, CONFIG, all_bytes() - 1) == Placement(None, 1024)
    with pytest.raises(DoesNotFit):
        place_in_ram(unpaged, CONFIG, 8 * GIB)


def test_the_free_memory_is_that_of_the_tightest_group(tmp_path: Path) -> None:
    """Both hierarchies; a group without a limit limits nothing, cached file contents count as free."""
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 50000\n")
    assert free_memory._left_in(tmp_path, free_memory._UNIFIED) == 650000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory._left_in(tmp_path, free_memory._UNIFIED) is None
    assert free_memory._left_in(tmp_path, free_memory._OLD) is None
    assert free_memory.free_memory() > 0
