"""Allocates bits within a number of bytes: each item gets the option that is worth most.

Each item has options of some bytes and some loss. Over the convex hulls of all items' options, the step that
saves most loss a byte is taken first. This is what a Lagrange multiplier would choose, exact except for the
last step (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988). What is
left then goes to options beside the hulls, those first that save most.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ernie_local.errors import DoesNotFit

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store an item: name, bytes and loss."""

    name: str
    num_bytes: int
    loss: float


def allocate(items: Mapping[Key, Sequence[Option]], budget: int) -> dict[Key, Option]:
    """An option for every item, together at most `budget` bytes; with what is left, none can lose less.

    DoesNotFit if the smallest options already take more.
    """
    hulls = {key: convex_hull(options) for key, options in items.items()}
    chosen = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].num_bytes for hull in hulls.values())
    if spent > budget:
        raise DoesNotFit(
            f"quantized weights take {spent:,} bytes at least, {budget:,} are wanted",
            "the smallest formats already take more",
            f"ask for {spent:,} bytes or more",
        )
    steps = [(key, to) for key, hull in hulls.items() for to in range(1, len(hull))]
    # Sorting keeps the order of equal gains: the earlier item first.
    for key, to in sorted(steps, key=lambda step: -_gain(*hulls[step[0]][step[1] - 1 : step[1] + 1])):
        more = hulls[key][to].num_bytes - hulls[key][to - 1].num_bytes
        # Of an item, no step behind one that did not fit.
        if chosen[key] == to - 1 and spent + more <= budget:
            spent += more
            chosen[key] = to
    found = {key: hulls[key][at] for key, at in chosen.items()}
    _fill(items, found, budget - spent)
    return found


def _fill(items: Mapping[Key, Sequence[Option]], found: dict[Key, Option], left: int) -> None:
    """Exchange options in `found` for better ones that take at most `left` bytes more together."""
    better = [
        (found[key].loss - option.loss, key, option)
        for key, options in items.items()
        for option in options
        if option.loss < found[key].loss and option.num_bytes - found[key].num_bytes <= left
    ]
    # One pass is enough: what does not fit now will not fit later, when less is left.
    for _, key, option in sorted(better, key=lambda each: -each[0]):
        more = option.num_bytes - found[key].num_bytes
        if option.loss < found[key].loss and more <= left:
            left -= more
            found[key] = option


def convex_hull(options: Sequence[Option]) -> list[Option]:
    """The options that are best at some price of a byte: bytes rise, losses fall, ever more slowly."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.num_bytes, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _gain(smaller: Option, larger: Option) -> float:
    return (smaller.loss - larger.loss) / (larger.num_bytes - smaller.num_bytes)
