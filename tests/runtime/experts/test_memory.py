"""Memory is locked as well as it can be, and what failed is named."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

from ernie_local.experts.device import PageLock, PageMemory, lock_by_system, lock_pages


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
