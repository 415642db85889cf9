"""Memory for weights: zeros, aligned, and an error of the right kind where there is none."""

from __future__ import annotations

import errno
import mmap

import pytest

from ernie_local.kernels.memory import empty_bytes
from ernie_local.sizes import MIB


@pytest.mark.parametrize("num_bytes", [0, 1, 64, 2 * MIB - 1, 2 * MIB, 5 * MIB + 4096])
def test_gives_zeros(num_bytes: int) -> None:
    given = empty_bytes(num_bytes)
    assert given.numel() == num_bytes
    assert not given.any()
    if num_bytes >= 2 * MIB and hasattr(mmap, "MADV_HUGEPAGE"):
        assert given.data_ptr() % (2 * MIB) == 0
    given.fill_(7)
    assert int(given.sum()) == 7 * num_bytes


def test_is_content_with_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *given: int) -> None:
            raise OSError(errno.EINVAL, "no such advice")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    assert empty_bytes(3 * MIB).numel() == 3 * MIB


def test_no_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes of memory"):
        empty_bytes(1 << 60)
