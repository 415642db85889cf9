"""Bits given out: against trying everything, within the budget, and by what is worth most."""

from __future__ import annotations

import itertools
import random

import pytest

from ernie_local.errors import DoesNotFit
from ernie_quant.allocate import Option, allocate, convex_hull


def draw_items(seed: int, count: int = 5) -> dict[int, list[Option]]:
    source = random.Random(seed)
    items = {}
    for item in range(count):
        sizes = sorted(source.sample(range(10, 60), 4))
        losses = sorted((source.random() for _ in sizes), reverse=True)
        items[item] = [
            Option(f"o{index}", size, loss)
            for index, (size, loss) in enumerate(zip(sizes, losses, strict=True))
        ]
    return items


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_of_as_many_bytes_loses_less(seed: int) -> None:
    """What a price of a byte chooses is the best of all choices that take no more bytes than it does."""
    items = draw_items(seed)
    least = sum(options[0].num_bytes for options in items.values())
    most = sum(options[-1].num_bytes for options in items.values())
    checked = 0
    for budget in range(least, most + 1, 3):
        chosen = allocate(items, budget)
        spent = sum(option.num_bytes for option in chosen.values())
        assert spent <= budget
        best = min(
            sum(option.loss for option in choice)
            for choice in itertools.product(*items.values())
            if sum(option.num_bytes for option in choice) <= spent
        )
        # Steps that no longer fit are left out for later, smaller ones: then it is not the hull any more.
        loss = sum(option.loss for option in chosen.values())
        largest_step = max(
            option.loss - further.loss
            for options in items.values()
            for option, further in itertools.pairwise(convex_hull(options))
        )
        assert loss <= best + largest_step
        checked += loss <= best + 1e-12
    assert checked > (most - least) / 3 / 4  # most budgets near a whole step are met exactly


def test_more_bytes_never_lose_more() -> None:
    items = draw_items(3, count=12)
    losses = [
        sum(option.loss for option in allocate(items, budget).values()) for budget in range(650, 720, 10)
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_left_is_too_little_for_any_better_option(seed: int) -> None:
    """Also for those beside the hull."""
    items = draw_items(seed)
    least, most = (sum(options[at].num_bytes for options in items.values()) for at in (0, -1))
    for budget in range(least, most + 1):
        chosen = allocate(items, budget)
        left = budget - sum(option.num_bytes for option in chosen.values())
        assert left >= 0
        for key, options in items.items():
            better = [option.num_bytes for option in options if option.loss < chosen[key].loss]
            assert not better or min(better) - chosen[key].num_bytes > left


def test_too_few_bytes_are_refused_with_both_numbers() -> None:
    items = {"a": [Option("w2", 100, 1.0), Option("w4", 200, 0.1)], "b": [Option("w2", 50, 1.0)]}
    assert allocate(items, 150)["a"].name == "w2"
    with pytest.raises(DoesNotFit, match="150 bytes at least, 149 are wanted"):
        allocate(items, 149)


def test_the_hull_leaves_out_what_no_price_chooses() -> None:
    options = [
        Option("small", 10, 1.0),
        Option("hidden", 20, 0.9),  # above the line from small to good
        Option("good", 30, 0.2),
        Option("worse", 40, 0.3),
        Option("as large", 30, 0.5),
        Option("best", 60, 0.1),
    ]
    assert [option.name for option in convex_hull(options)] == ["small", "good", "best"]
    assert [option.name for option in convex_hull([Option("b", 10, 0.5), Option("a", 10, 0.2)])] == ["a"]
