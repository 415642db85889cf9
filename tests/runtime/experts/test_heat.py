"""Heat against its definition, its two ends against LRU and counts, and the decay that is found."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from random import Random

import pytest

from ernie_local.experts.heat import DECAYS, AdaptiveHeat, Heat
from ernie_local.experts.keys import ExpertKey

KEYS = [ExpertKey(layer_id, "text", expert_id) for layer_id in (1, 2) for expert_id in range(12)]


def drawn(seed: int, num_tokens: int = 200) -> list[list[ExpertKey]]:
    """Three experts of the first layer for each token, some oftener than others."""
    random = Random(seed)
    weights = [1 / (1 + key.expert_id) for key in KEYS[:12]]
    return [list(dict.fromkeys(random.choices(KEYS[:12], weights, k=4)))[:3] for _ in range(num_tokens)]


def order(heat: Heat | AdaptiveHeat) -> list[ExpertKey]:
    return sorted((key for key in KEYS if heat.level(key) > -math.inf), key=heat.level)


def test_decay_0_is_the_order_of_last_uses() -> None:
    heat, last = Heat(0.0), OrderedDict[ExpertKey, None]()
    for token in drawn(1):
        heat.advance()
        for key in token[:1]:  # one for each token: within a token all are equally late
            heat.touch([key])
            last[key] = None
            last.move_to_end(key)
        assert order(heat) == list(last)


def test_decay_1_is_the_order_of_counts() -> None:
    heat, counts = Heat(1.0), Counter[ExpertKey]()
    for token in drawn(2):
        heat.advance()
        heat.touch(token)
        counts.update(token)
    assert [2 ** heat.level(key) for key in counts] == pytest.approx(list(counts.values()))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.98])
def test_levels_are_decayed_sums(decay: float) -> None:
    heat, uses = Heat(decay), dict[ExpertKey, list[int]]()
    tokens = drawn(3)
    for number, token in enumerate(tokens):
        heat.advance()
        heat.touch(token)
        for key in token:
            uses.setdefault(key, []).append(number)
    expected = {key: sum(decay ** (len(tokens) - 1 - use) for use in of_key) for key, of_key in uses.items()}
    hottest = max(expected, key=expected.__getitem__)
    for key, value in expected.items():
        assert 2 ** (heat.level(key) - heat.level(hottest)) == pytest.approx(value / expected[hottest])


def test_levels_never_fall_and_the_unknown_is_coldest() -> None:
    heat = Heat(0.9)
    assert heat.level(KEYS[0]) == -math.inf
    before = -math.inf
    for _ in range(50):
        heat.advance()
        heat.touch(KEYS[:1])
        assert heat.level(KEYS[0]) > before
        before = heat.level(KEYS[0])
    assert not heat.advance()


def test_a_prompt_counts_as_a_few_tokens_however_long() -> None:
    heat = Heat(1.0)
    heat.advance()
    heat.touch_in_prompt(KEYS[0], 1.0)
    heat.touch_in_prompt(KEYS[1], 0.25)
    assert [2 ** heat.level(key) for key in KEYS[:2]] == [4.0, 1.0]


def settled_decay(token: Callable[[int], list[ExpertKey]], num_slots: int) -> float:
    """The decay that counts after so many tokens."""
    heat = AdaptiveHeat([1], num_slots)
    for number in range(600):
        heat.advance()
        heat.touch(token(number))
    return heat.decay


def test_steady_choices_end_with_a_long_memory_and_repeated_ones_with_the_last_use() -> None:
    random = Random(4)
    keys = [ExpertKey(1, "text", expert_id) for expert_id in range(60)]
    weights = [1 / (1 + expert_id) for expert_id in range(60)]
    assert settled_decay(lambda _: list(set(random.choices(keys, weights, k=6))), 15) == DECAYS[-1]
    # Two sets of six in turn, with slots for both, and other two after sixteen tokens.
    assert settled_decay(lambda n: Random(2 * (n // 16) + n % 2).sample(keys, 6), 12) == DECAYS[0]


def test_the_level_is_that_of_the_decay_that_counts() -> None:
    heats, heat = {decay: Heat(decay) for decay in DECAYS}, AdaptiveHeat([1], 4)
    changes = 0
    for number, token in enumerate(drawn(5, 300) + [KEYS[:3]] * 20 + drawn(6, 300)):
        everything: list[Heat | AdaptiveHeat] = [*heats.values(), heat]
        for one in everything:
            changes += one.advance()
            if number % 40 == 0:
                one.touch_in_prompt(KEYS[number % 12], 0.5)
            one.touch(token)
        assert [heat.level(key) for key in KEYS] == [heats[heat.decay].level(key) for key in KEYS]
    assert changes
