"""Classes and frames against every other choice there is."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from ernie_local.experts.plan import class_sizes, frame_bytes

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def waste(pages: list[int], sizes: tuple[int, ...]) -> int:
    return sum(min(size for size in sizes if size >= page) - page for page in pages)


@given(SIZES)
def test_no_four_sizes_waste_less(pages: list[int]) -> None:
    sizes = class_sizes(pages)
    assert sizes == sorted(set(sizes))
    assert len(sizes) <= 4
    others = [
        (*chosen, max(pages)) for count in range(4) for chosen in combinations(sorted(set(pages)), count)
    ]
    assert waste(pages, tuple(sizes)) == min(waste(pages, other) for other in others)


@given(SIZES)
def test_no_frame_of_up_to_four_pages_wastes_less(pages: list[int]) -> None:
    def share_used(frame: int) -> float:
        return sum(pages) / sum(frame / (frame // page) for page in pages)

    frame = frame_bytes(pages)
    assert frame % max(pages) == 0
    assert share_used(frame) >= max(share_used(max(pages) * count) for count in (1, 2, 3, 4)) - 1e-12
