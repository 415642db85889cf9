"""What a GPU asks of paging, piece by piece: who is waited for, what is locked, what goes where."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.experts.device import from_bytes, to_bytes
from ernie_local.experts.level import LastUses
from ernie_local.experts.memory import PageLock, PageMemory, lock_by_system, lock_pages


@dataclasses.dataclass
class Numbered:
    """An event that is known by its number."""

    number: int

    def synchronize(self) -> None:
        pass


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(1, 4)), max_size=100), st.integers(0, 600))
def test_the_event_that_is_found_is_the_last_of_the_range_or_behind_it(
    uses: list[tuple[int, int]], others: int
) -> None:
    last_uses = LastUses(30 * 4096)
    for number, (first, count) in enumerate(uses):
        last_uses.note([(first * 4096, count * 4096 - 100)], Numbered(number))
    for number in range(others):
        last_uses.note([(25 * 4096, 4096)], Numbered(len(uses) + number))
    num_all = len(uses) + others
    for looked_up in range(20):
        touching = [
            number for number, (first, count) in enumerate(uses) if first <= looked_up < first + count
        ]
        found = last_uses.find(looked_up * 4096, 4096)
        if not touching:
            assert found is None
            continue
        assert isinstance(found, Numbered)
        if touching[-1] >= num_all - 256:
            assert found.number == touching[-1]
        else:
            assert touching[-1] + 100 < found.number < num_all


def test_what_is_read_back_together_comes_apart_as_it_was() -> None:
    tensors = [
        torch.tensor([[7, 60, 2]]),
        torch.rand(3, 1).bfloat16()[::2],
        torch.randn(1, 5),
        torch.tensor([float("nan"), -0.0]),
    ]
    buffer = to_bytes(tensors)
    assert len(buffer) == 24 + 4 + 20 + 8
    found = from_bytes(buffer, tensors)
    buffer.fill_(0)
    for one, other in zip(found, tensors, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    (alone,) = from_bytes(to_bytes(tensors[:1]), tensors[:1])
    assert torch.equal(alone, tensors[0])


def refuses(reason: str) -> Callable[[int, int], str | None]:
    return lambda address, num_bytes: reason


def takes(address: int, num_bytes: int) -> None:
    assert num_bytes == 8192


def test_memory_is_locked_as_well_as_it_can_be_and_what_failed_is_named() -> None:
    memory = torch.empty(8192, dtype=torch.uint8)
    assert lock_pages(memory, takes, refuses("no")) == PageLock("pinned")
    locked = lock_pages(memory, refuses("error 2"), takes)
    assert locked == PageLock("locked", ("CUDA page-locks no 8192 bytes (error 2)",))
    pageable = lock_pages(memory, refuses("error 2"), refuses("quota"))
    assert pageable.step == "pageable"
    assert pageable.describe().endswith("(error 2); the system locks no 8192 bytes (quota)")


def test_the_system_locks_what_there_is_and_says_when_it_does_not() -> None:
    memory = PageMemory(1 << 20)
    address = memory.bytes.data_ptr()
    refusal = lock_by_system(address, 4096)
    if refusal is not None:
        pytest.skip(f"this process may lock nothing: {refusal}")
    ctypes.CDLL(None).munlock(ctypes.c_void_p(address), ctypes.c_size_t(4096))
    # What is not mapped cannot be locked, whatever the limit and whoever asks.
    refusal = lock_by_system(address, 1 << 45)
    assert refusal is not None
    assert "see ulimit -l" in refusal
