"""LRU, LFU and Belady's optimum against plain versions of themselves, on small traces."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from itertools import combinations
from random import Random

import numpy as np
import pytest

from ernie_local.errors import DoesNotFit
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.plan import PagingPlan
from ernie_local.replay.replay import belady, compare, lfu, list_visits, lru
from ernie_local.replay.trace import Forward, Trace

TOP_K, EXPERTS, PAGE = 2, 6, 4096


def made(seed: int, num_tokens: int, with_prompts: bool = False) -> Trace:
    random = Random(seed)
    forwards = []
    for number in range(num_tokens):
        tokens = 3 if with_prompts and number % 5 == 0 else 1
        ids = [random.sample(range(EXPERTS), TOP_K) for _ in range(2 * tokens)]
        shares = np.full((len(ids), TOP_K), 0.5, np.float32)
        forwards.append(Forward(np.zeros(tokens, np.bool_), np.array(ids, np.uint16), shares))
    keys = [ExpertKey(layer_id, "text", expert_id) for layer_id in (0, 1) for expert_id in range(EXPERTS)]
    return Trace("made", TOP_K, dict.fromkeys(keys, PAGE), tuple(forwards))


@pytest.mark.parametrize("num_slots", [2, 5, 9, 12])
def test_lru_is_that_of_an_ordered_dict(num_slots: int) -> None:
    trace, there, hits = made(1, 200), OrderedDict[ExpertKey, None](), 0
    for visit in list_visits(trace):
        hits += sum(key in there for key in visit.keys)
        for key in visit.keys:
            there[key] = None
            there.move_to_end(key)
        while len(there) > num_slots:
            there.popitem(last=False)
    assert lru(trace, num_slots * PAGE).banks["text"].decode_hits == hits


def test_lfu_keeps_what_was_used_most() -> None:
    often = [[0, 1]] * 20 + [[2, 3], [4, 5]] * 5 + [[0, 1]]
    forwards = tuple(
        Forward(np.zeros(1, np.bool_), np.array([ids] * 2, np.uint16), np.ones((2, 2), np.float32))
        for ids in often
    )
    trace = Trace("made", TOP_K, made(0, 1).page_bytes, forwards)
    stats = lfu(trace, 6 * PAGE)
    # Twenty times both layers' first two, of which the first comes cold, and once more at the end.
    assert stats.banks["text"].decode_hits == 19 * 4 + 4
    assert lru(trace, 6 * PAGE).banks["text"].decode_hits == 19 * 4


@pytest.mark.parametrize("with_prompts", [False, True])
@pytest.mark.parametrize("num_slots", [2, 3, 5])
def test_no_choice_of_pages_finds_more_than_belady(num_slots: int, with_prompts: bool) -> None:
    trace = made(3, 11, with_prompts)
    everything = tuple(list_visits(trace))

    @cache
    def most(index: int, there: frozenset[ExpertKey]) -> int:
        """Of every way to choose what goes."""
        if index == len(everything):
            return 0
        keys, is_decode = everything[index].keys, everything[index].is_decode
        hits = sum(key in there for key in keys) if is_decode else 0
        others = there - set(keys)
        num_kept = min(len(others), num_slots - len(keys))
        return hits + max(
            most(index + 1, frozenset(kept) | frozenset(keys))
            for kept in combinations(sorted(others), num_kept)
        )

    assert belady(trace, num_slots * PAGE).banks["text"].decode_hits == most(0, frozenset())


def test_everything_is_counted_once() -> None:
    trace = made(4, 60, with_prompts=True)
    least = PagingPlan(trace.page_bytes, TOP_K).least_bytes
    for result in compare(trace, 6 * PAGE, (None, 0.5)):
        text = result.stats.banks["text"]
        assert text.decode_hits + text.decode_misses == 48 * 2 * TOP_K
        distinct = sum(len(visit.keys) for visit in list_visits(trace) if not visit.is_decode)
        assert text.prompt_hits + text.prompt_misses == distinct
        assert result.stats.decode_bytes_read == text.decode_misses * PAGE
        assert result.prompt_bytes >= text.prompt_misses * PAGE  # more where pages came too early
        assert result.bytes_per_token == text.decode_misses * PAGE / 48
    with pytest.raises(DoesNotFit, match=rf"{least} bytes or more"):
        compare(trace, least - 1)


def test_ours_is_lru_at_decay_0_and_never_beats_belady() -> None:
    trace = made(5, 300)
    for num_slots in (4, 6, 9):
        zero, adaptive, one, least_recent, _, best = (
            result.stats.banks["text"].decode_hits
            for result in compare(trace, num_slots * PAGE, (0.0, None, 1.0))
        )
        assert abs(zero - least_recent) <= 0.01 * least_recent  # within a token all uses are equally late
        assert max(zero, adaptive, one) <= best
