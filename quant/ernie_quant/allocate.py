"""Allocates bits within a number of bytes: each item gets the option that is worth most.

Each item has options of some bytes and some loss. Over the convex hulls of all items' options, the step that
saves most loss a byte is taken first. This is what a Lagrange multiplier would choose, exact except for the
last step (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988).
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ernie_local.errors import DoesNotFit
from ernie_local.sizes import format_bytes

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store an item: name, bytes and loss."""

    name: str
    num_bytes: int
    loss: float


def allocate(items: Mapping[Key, Sequence[Option]], budget: int) -> dict[Key, Option]:
    """An option for every item, together at most `budget` bytes.

    DoesNotFit if the smallest options already take more.
    """
    hulls = {key: convex_hull(options) for key, options in items.items()}
    chosen = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].num_bytes for hull in hulls.values())
    if spent > budget:
        raise DoesNotFit(
            f"quantized weights take {format_bytes(spent)} at least, {format_bytes(budget)} are wanted",
            "the smallest formats already take more",
            f"ask for {format_bytes(spent)} or more",
        )
    order = {key: number for number, key in enumerate(hulls)}  # equal gains: the earlier item first
    steps: list[tuple[float, int, Key]] = []

    def offer(key: Key) -> None:
        hull, at = hulls[key], chosen[key]
        if at + 1 < len(hull):
            gain = (hull[at].loss - hull[at + 1].loss) / (hull[at + 1].num_bytes - hull[at].num_bytes)
            heapq.heappush(steps, (-gain, order[key], key))

    for key in hulls:
        offer(key)
    while steps:
        _, _, key = heapq.heappop(steps)
        hull, at = hulls[key], chosen[key]
        more = hull[at + 1].num_bytes - hull[at].num_bytes
        if spent + more <= budget:
            spent += more
            chosen[key] = at + 1
            offer(key)
    return {key: hulls[key][at] for key, at in chosen.items()}


def convex_hull(options: Sequence[Option]) -> list[Option]:
    """The options that are best at some price of a byte: bytes rise, losses fall, ever more slowly."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.num_bytes, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        if len(hull) == 1 and option.num_bytes == hull[0].num_bytes:
            continue
        hull.append(option)
    return hull


def _gain(smaller: Option, larger: Option) -> float:
    return (smaller.loss - larger.loss) / (larger.num_bytes - smaller.num_bytes)
