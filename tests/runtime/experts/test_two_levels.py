"""A small memory above a larger one, without a model: every page is where the books say it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import MISS_RULES
from ernie_local.experts.plan import PagingPlan
from ernie_local.experts.traffic import PageTraffic
from ernie_local.experts.two_levels import PinningReader, TwoLevels


class Books:
    """A PageReader that copies names: what is in which slot of which memory, as its caller believes."""

    def __init__(self, source: dict[int, ExpertKey] | None) -> None:
        self.memory: dict[int, ExpertKey] = {}
        self.traffic: PageTraffic | None = None
        self.below: PageTraffic | None = None
        self.source = source
        self.coming: list[ExpertKey] = []

    def start(self, key: ExpertKey) -> None:
        self.coming.append(key)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        assert self.traffic is not None
        for key in keys:
            if self.source is not None:
                assert self.below is not None
                offset = self.below.cache.offset(key)
                assert self.source.get(offset) == key or key in self.below.cache.in_flight
            self.coming.remove(key)
            self.memory[self.traffic.cache.offset(key)] = key

    def abort(self) -> None:
        self.coming.clear()


def books(plan: PagingPlan, upper: int, lower: int) -> tuple[Books, Books]:
    disk = Books(None)
    disk.traffic = PageTraffic(plan.build_cache(lower), plan, disk)
    copier = Books(disk.memory)
    copier.below = disk.traffic
    lending = PinningReader(disk.traffic, copier)
    copier.traffic = PageTraffic(plan.build_cache(upper), plan, lending)
    return copier, disk


@pytest.mark.parametrize("max_examples", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_every_page_is_where_it_is_computed(max_examples: int) -> None:
    settings(max_examples=max_examples)(given(data=st.data())(use_pages))()


def use_pages(data: st.DataObject) -> None:
    """Random calls for prompts and tokens, in random memory."""
    keys = [
        ExpertKey(layer, bank, expert)
        for layer in range(3)
        for bank in ("text", "vision")
        for expert in range(8)
    ]
    page_bytes = {key: 12288 if key.bank == "text" else 4096 for key in keys}
    plan = PagingPlan(page_bytes, 2)
    most = plan.most_bytes - plan.least_bytes
    upper, lower = (plan.least_bytes + int(data.draw(st.floats(0, 1)) * most) for _ in range(2))
    copier, disk = books(plan, upper, lower)
    assert copier.traffic is not None
    assert disk.traffic is not None
    rule = data.draw(st.sampled_from(list(MISS_RULES.values())))
    levels = TwoLevels(copier.traffic, disk.traffic, rule)
    memories = [copier, disk]
    for _ in range(data.draw(st.integers(1, 12))):
        with_vision = data.draw(st.booleans())
        tokens = data.draw(st.integers(1, 30))
        banks = {"text": tokens, "vision": 40} if with_vision else {"text": tokens}
        is_decode = levels.begin(banks)
        assert is_decode == (banks == {"text": 1})
        for layer in range(3):
            for bank, count in banks.items():
                ids = st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True)
                chosen = [ExpertKey(layer, bank, expert) for _ in range(count) for expert in data.draw(ids)]
                if is_decode:
                    groups = levels.decode(bank, chosen)
                else:
                    groups = levels.stream(layer, bank, chosen, count)
                computed: list[ExpertKey] = []
                for group in groups:
                    books_of = memories[group.level]
                    assert books_of.traffic is not None
                    for key in group.keys:
                        assert books_of.memory[books_of.traffic.cache.offset(key)] == key
                    computed += group.keys
                    assert group.is_last == (len(computed) == len(set(chosen)))
                assert sorted(computed) == sorted(set(chosen))
        for one in memories:
            assert one.traffic is not None
            assert not one.traffic.cache.has_pins or one.traffic.cache.in_flight or one is disk
    levels.abort()
    for one in memories:
        assert one.traffic is not None
        assert not one.coming
        assert not one.traffic.cache.has_pins
