"""A range of memory is overwritten only after its last use."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from ernie_local.experts.level import LastUses


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
