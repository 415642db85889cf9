"""The policies of textbooks on a trace: LRU, LFU and Belady's optimum, as a measure of our own.

Each has the same bytes and no other rule: any page may lie anywhere, a page of any size pushes out as many as
it must, and what a layer wants for a token lies there together. Only decode is scored; prompts pass through
the memory as through ours, page by page. Knows no torch.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.paging_stats import PagingStats
from ernie_local.experts.trace import Trace


@dataclass(frozen=True, slots=True)
class Visit:
    """Pages that one layer wants together."""

    keys: tuple[ExpertKey, ...]
    is_decode: bool


def visits(trace: Trace) -> Iterator[Visit]:
    """All of a trace in order; of a prompt each page once for each layer, and alone."""
    for forward in trace.forwards:
        is_decode = len(forward.is_vision) == 1
        for call in trace.calls(forward):
            ids = dict.fromkeys(call.expert_ids.ravel().tolist())
            keys = tuple(ExpertKey(call.layer_id, call.bank, expert_id) for expert_id in ids)
            if is_decode:
                yield Visit(keys, is_decode)
            else:
                yield from (Visit((key,), is_decode) for key in sorted(keys))


def lru(trace: Trace, memory_bytes: int) -> PagingStats:
    """What was not used for the longest time goes."""
    clock = iter(range(1 << 62))
    return _run(trace, memory_bytes, lambda _key, _visit: next(clock))


def lfu(trace: Trace, memory_bytes: int) -> PagingStats:
    """What was used least often since the beginning goes; of equals, what was not used for longer.

    A layer's use of a page in a prompt counts once, however many tokens chose it.
    """
    counts: dict[ExpertKey, int] = {}
    clock = iter(range(1 << 62))

    def worth(key: ExpertKey, _visit: int) -> float:
        counts[key] = counts.get(key, 0) + 1
        return counts[key] + next(clock) / (1 << 32)

    return _run(trace, memory_bytes, worth)


def belady(trace: Trace, memory_bytes: int) -> PagingStats:
    """What a decoded token wants latest goes.

    No policy finds more where pages are of one size: the sooner a page is wanted, the shorter it is in the
    way. Wanted by a prompt does not count: that is not scored, and the page is read there anyway. With pages
    of several sizes it is a good bound, not an optimum.
    """
    following: dict[tuple[int, ExpertKey], float] = {}
    last: dict[ExpertKey, float] = {}
    everything = list(visits(trace))
    for index in reversed(range(len(everything))):
        for key in everything[index].keys:
            following[index, key] = last.get(key, math.inf)
            last[key] = index if everything[index].is_decode else math.inf
    return _run(trace, memory_bytes, lambda key, visit: -following[visit, key], everything)


def _run(
    trace: Trace,
    memory_bytes: int,
    worth: Callable[[ExpertKey, int], float],
    everything: Iterable[Visit] | None = None,
) -> PagingStats:
    """A memory of which the least worthy page goes; worth(page, number of the visit) as of now."""
    stats = PagingStats()
    stats.decoded_tokens, stats.prompt_tokens = trace.decoded_tokens, trace.prompt_tokens
    worths: dict[ExpertKey, float] = {}  # of the pages that are there
    queue: list[tuple[float, ExpertKey]] = []
    room = memory_bytes
    for index, visit in enumerate(visits(trace) if everything is None else everything):
        missing = [key for key in visit.keys if key not in worths]
        _count(stats, visit, missing, trace)
        room -= sum(trace.page_bytes[key] for key in missing)
        held: list[tuple[float, ExpertKey]] = []
        while room < 0 and queue:
            least, key = heapq.heappop(queue)
            if worths.get(key) != least:
                continue  # it was used since, or has gone
            if key in visit.keys:
                held.append((least, key))
            else:
                del worths[key]
                room += trace.page_bytes[key]
        for entry in held:
            heapq.heappush(queue, entry)
        for key in visit.keys:
            worths[key] = worth(key, index)
            heapq.heappush(queue, (worths[key], key))
    return stats


def _count(stats: PagingStats, visit: Visit, missing: Sequence[ExpertKey], trace: Trace) -> None:
    bank = stats.banks[visit.keys[0].bank]
    num_bytes = sum(trace.page_bytes[key] for key in missing)
    bank.bytes_read += num_bytes
    if visit.is_decode:
        bank.decode_misses += len(missing)
        bank.decode_hits += len(visit.keys) - len(missing)
        stats.decode_bytes_read += num_bytes
    else:
        bank.prompt_misses += len(missing)
        bank.prompt_hits += len(visit.keys) - len(missing)
