"""The doctor's checks of GPUs: what they compute, who has their memory, their link, page-locking."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ernie_local.doctor.gpu import lock_limit, lockable_bytes
from ernie_local.machine.hardware import GpuProcess
from tests.runtime.doctor.looking import look
from tests.runtime.doctor.made_up import one, profile


def test_no_gpu_is_ok() -> None:
    assert look("gpu", gpus=None).verdict == "ok"
    assert look("gpu", gpus=()).facts == {"gpus": []}


@pytest.mark.parametrize(
    ("capability", "verdict", "text"),
    [((8, 0), "ok", "8.0, "), ((7, 5), "ok", "7.5 (no bfloat16"), ((7, 0), "ok", "7.0 ("),
     ((6, 1), "slow", "6.1 (no Triton")],
)  # fmt: skip
def test_what_the_gpu_can_compute(capability: tuple[int, int], verdict: str, text: str) -> None:
    found = look("gpu", gpus=one(compute_capability=capability))
    assert found.verdict == verdict
    assert f"compute capability {text}" in found.text
    told: Any = found.facts["gpus"]
    last = "2.14" if capability < (7, 5) else None
    assert told[0]["last_pytorch"] == last
    assert (last is not None) == ("PyTorch 2.14 is the last" in found.text)


@pytest.mark.parametrize(("free", "verdict"), [(9 << 30, "ok"), ((9 << 30) - 1, "slow")])
def test_who_holds_the_memory_is_named(free: int, verdict: str) -> None:
    found = look(
        "gpu", gpus=one(free_bytes=free, processes=(GpuProcess("game", 2 << 30), GpuProcess("x", None)))
    )
    assert found.verdict == verdict
    assert "GiB free of 12.00 GiB (held by game 2.00 GiB, x)" in found.text
    assert found.facts["gpus"] == [
        {
            "name": "GPU 9000",
            "compute_capability": "8.6",
            "last_pytorch": None,
            "total_bytes": 12 << 30,
            "free_bytes": free,
            "processes": [{"name": "game", "bytes": 2 << 30}, {"name": "x", "bytes": None}],
        }
    ]


# link


@pytest.mark.parametrize(
    ("changes", "rate", "verdict", "text"),
    [
        ({}, None, "ok", "generation 4, lanes 16 of 16, not measured"),
        ({"link_width": 4}, None, "slow", "lanes 4 of 16"),
        ({"link_width": None, "link_generation": None}, 1e9, "ok", "generation unknown, lanes unknown of 16"),
        ({}, 24e9, "ok", "24.0 GB/s measured"),
        ({}, 15e9, "slow", "15.0 GB/s measured, 31.5 possible"),
        ({"link_generation": 3}, 12e9, "ok", "12.0 GB/s measured"),
    ],
)
def test_lanes_and_what_they_carry(
    changes: dict[str, Any], rate: float | None, verdict: str, text: str
) -> None:
    found = look("link", gpus=one(**changes), stored_profile=(None if rate is None else profile(rate), None))
    assert found.verdict == verdict
    assert text in found.text
    assert found.facts["bytes_per_second"] == rate


def test_a_rate_of_a_gpu_that_is_gone_is_not_told() -> None:
    assert look("link", gpus=(), stored_profile=(profile(1e10), None)).facts == {
        "generation": None, "width": None, "width_most": None, "bytes_per_second": None,
    }  # fmt: skip


# pinned


@pytest.mark.parametrize(("given", "verdict"), [(1 << 30, "ok"), (1 << 29, "slow")])
def test_a_driver_that_locks_little_is_slow(
    monkeypatch: pytest.MonkeyPatch, given: int, verdict: str
) -> None:
    asked: list[int] = []

    def empty(size: int, **options: Any) -> None:
        assert options["pin_memory"]
        asked.append(size)
        if size > given:
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr("ernie_local.doctor.gpu.free_memory", lambda: 12 << 30)
    found = look("pinned")
    assert (found.verdict, found.facts["quota_bytes"]) == (verdict, given)
    assert max(asked) <= 3 << 30  # a fourth of what is free


def test_a_driver_that_locks_whatever_is_asked_for_is_not_asked_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "empty", lambda size, **options: None)
    for free, quota in ((1 << 40, 4 << 30), (3 << 30, 3 << 28), (0, 0)):
        assert lockable_bytes(free) == quota


def test_without_a_gpu_nothing_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was locked"))
    found = look("pinned")
    assert (found.verdict, found.facts["quota_bytes"]) == ("ok", None)
    assert found.facts["limit_bytes"] == lock_limit()
