"""Which sizes of slots serve pages of many sizes: a few classes, and frames that waste little.

Pure arithmetic. In a checkpoint of mixed bits pages of one bank differ by up to two times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

_MOST_CLASSES = 4
_MOST_PAGES_A_FRAME = 4  # of the largest; more would waste less, and be harder to empty


def class_sizes(page_bytes: Sequence[int]) -> list[int]:
    """At most four sizes, ascending; a page goes into the first that holds it. Least waste over all pages.

    page_bytes: of every page.
    """
    counts = Counter(page_bytes)
    sizes = sorted(counts)

    def cost(first: int, last: int) -> int:
        return sum(counts[size] * (sizes[last] - size) for size in sizes[first : last + 1])

    # least[i]: the least waste of the first i sizes in as many classes as allowed yet, and these classes.
    nothing: tuple[float, tuple[int, ...]] = (0.0, ())
    least = [nothing, *[(math.inf, nothing[1])] * len(sizes)]
    for _ in range(_MOST_CLASSES):
        shorter = list(least)
        for end in range(1, len(sizes) + 1):
            for first in range(end):
                waste = shorter[first][0] + cost(first, end - 1)
                if waste < least[end][0]:
                    least[end] = (waste, (*shorter[first][1], sizes[end - 1]))
    return list(least[-1][1])


def frame_bytes(page_bytes: Sequence[int]) -> int:
    """Bytes of a frame, one to four of the largest page, in which these pages waste least.

    page_bytes: of every page, each as large as its class.
    """
    counts = Counter(page_bytes)

    def taken(candidate: int) -> float:
        return sum(count * candidate / (candidate // size) for size, count in counts.items())

    return min((max(counts) * pages for pages in range(1, _MOST_PAGES_A_FRAME + 1)), key=taken)
