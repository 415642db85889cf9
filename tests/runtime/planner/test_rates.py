"""Seconds of a decoded token: the formula against sums done by hand, and what must hold of any numbers."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.planner.rates import DecodeWork, PagingCosts, Rates, decode_seconds

# 4 layers of which 3 have experts, 2 to a token: 10 GB/s of w4, 5 of w8, 1 of the disk.
WORK = DecodeWork(
    num_layers=4,
    moe_layers=3,
    experts_per_token=2,
    always_bytes={"w8": 50_000_000, "float32": 10_000_000},
    expert_bytes=10_000_000,
    expert_format="w4",
    page_bytes=10_000_000,
)
RATES = Rates(1e9, 1e10, 1e12, 0.004, 0.001, format_rates={"w8": 5e9})
FIXED = 0.004 + 4 * 0.001
ALWAYS = 0.010 + 0.001
EXPERT = 0.001  # computing one
PAGE = 0.010  # reading one


def test_resident_experts() -> None:
    assert decode_seconds(WORK, RATES) == pytest.approx(FIXED + ALWAYS + 6 * EXPERT)


def test_a_conversation_is_read_too() -> None:
    more = decode_seconds(WORK, RATES, context_bytes=20_000_000) - decode_seconds(WORK, RATES)
    assert more == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("hit_rate", "a_layer"),
    [
        (1.0, 2 * EXPERT),
        (0.0, 2 * PAGE + 2 * EXPERT),
        # None, one or two are missing; the one that is there is computed while the other is read.
        (0.5, 0.25 * 2 * EXPERT + 0.5 * (PAGE + EXPERT) + 0.25 * (2 * PAGE + 2 * EXPERT)),
    ],
)
def test_paged_experts(hit_rate: float, a_layer: float) -> None:
    assert decode_seconds(WORK, RATES, hit_rate) == pytest.approx(FIXED + ALWAYS + 3 * a_layer)


def test_a_fast_disk_hides_behind_what_is_computed_meanwhile() -> None:
    fast = dataclasses.replace(RATES, disk_bytes_per_second=1e11)  # a page in a tenth of an expert
    expected = FIXED + ALWAYS + 3 * (0.25 * 2 + 0.5 * 2 + 0.25 * (2 * 0.1 + 2)) * EXPERT
    assert decode_seconds(WORK, fast, 0.5) == pytest.approx(expected)


def test_paging_has_costs_of_its_own() -> None:
    paging = dataclasses.replace(RATES, paging=PagingCosts(0.0005, 0.002))
    assert decode_seconds(WORK, paging) == decode_seconds(WORK, RATES)
    more = decode_seconds(WORK, paging, 0.5) - decode_seconds(WORK, RATES, 0.5)
    assert more == pytest.approx(3 * (0.0005 + 2 * 0.5 * 0.002))


def test_pages_on_disk_may_have_another_size_than_experts_in_memory() -> None:
    half = dataclasses.replace(WORK, page_bytes=5_000_000)
    less = decode_seconds(WORK, RATES, 0.0) - decode_seconds(half, RATES, 0.0)
    assert less == pytest.approx(3 * 2 * PAGE / 2)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e8, 1e11))
def test_finding_more_is_never_slower(one: float, other: float, disk: float) -> None:
    rates = dataclasses.replace(RATES, disk_bytes_per_second=disk, paging=PagingCosts(0.0, 1e-4))
    low, high = sorted((one, other))
    assert decode_seconds(WORK, rates, high) <= decode_seconds(WORK, rates, low) * (1 + 1e-9)
    assert decode_seconds(WORK, rates, low) >= decode_seconds(WORK, rates) * (1 - 1e-9)
