"""Replays a trace through the page cache without weights, and through textbook policies for comparison.

Our policy makes the very calls of the runtime (experts/traffic.py) in the same order, so its counts are those
of the runtime while the memory for experts stays the same: a trace does not say what a conversation takes.

The textbook policies LRU, LFU and Belady have the same bytes and no other rule: any page may lie anywhere, a
page evicts as many others as it must, and what a layer wants for a token lies in memory together. Only decode
is scored; prompts pass through their memory page by page, as through ours.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from ernie_local.config import BankKey
from ernie_local.errors import DoesNotFit
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import BankStats, PagingStats
from ernie_local.experts.traffic import PageGroup, PageTraffic
from ernie_local.experts.two_levels import TwoLevels
from ernie_local.replay.trace import Trace
from ernie_local.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one policy did with a trace. decay: of our own policy, None if it adapts its decay."""

    policy: str
    decay: float | None
    stats: PagingStats

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes read for each decoded token; None where none was decoded."""
        tokens = self.stats.decoded_tokens
        return self.stats.decode_bytes_read / tokens if tokens else None

    @property
    def prompt_bytes(self) -> int:
        """Bytes read in prompts."""
        return sum(bank.bytes_read for bank in self.stats.banks.values()) - self.stats.decode_bytes_read


class ReplayedCall(NamedTuple):
    """What one layer asks of one bank. is_first: of its forward."""

    is_decode: bool
    is_first: bool
    groups: Iterator[PageGroup]


class _NoReader:
    """A PageReader whose pages come at once."""

    def start(self, key: ExpertKey) -> None:
        pass

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        pass

    def abort(self) -> None:
        pass


def replay_trace(trace: Trace, memory_bytes: int, decay: float | None = None) -> PagingStats:
    """What paging counts, seconds left out, with experts in at most `memory_bytes`.

    memory_bytes: at least the plan's `least_bytes`. decay: as for `PagingPlan.build_cache`.
    """
    plan = trace.plan
    traffic = PageTraffic(plan.build_cache(memory_bytes, decay), plan, _NoReader())
    for step in walk(trace, traffic, traffic.keys):
        for _ in step.groups:
            pass
    return traffic.stats


def walk(
    trace: Trace, traffic: PageTraffic | TwoLevels, keys: Mapping[BankKey, Sequence[ExpertKey]]
) -> Iterator[ReplayedCall]:
    """Every call of a trace in order, as the runtime makes it. keys: as a PageTraffic has them.

    Go through the groups of each before the next one is asked for.
    """
    for forward in trace.forwards:
        is_decode = traffic.begin(forward.tokens, forward.num_sequences)
        for number, call in enumerate(trace.calls(forward)):
            of_bank = keys[call.layer_id, call.bank]
            chosen = [of_bank[expert_id] for expert_id in call.expert_ids.ravel().tolist()]
            if is_decode:
                groups = traffic.decode(call.bank, chosen)
            else:
                groups = traffic.stream(call.layer_id, call.bank, chosen, len(call.expert_ids))
            yield ReplayedCall(is_decode, number == 0, groups)


def check_budget(trace: Trace, memory_bytes: int) -> None:
    """Raise DoesNotFit for a memory in which this model's experts cannot be paged."""
    least = trace.plan.least_bytes
    if memory_bytes < least:
        raise DoesNotFit(
            f"{format_bytes(memory_bytes)} for experts of {trace.model}, {format_bytes(least)} needed",
            f"the {trace.top_k} experts of a token must be in memory together, whatever their sizes",
            f"give {least} bytes or more",
        )


def compare(trace: Trace, memory_bytes: int, decays: Sequence[float | None] = (None,)) -> list[Replayed]:
    """Our policy with each decay, and the textbooks' in the same bytes; DoesNotFit as `check_budget`."""
    check_budget(trace, memory_bytes)
    ours = [Replayed("ours", decay, replay_trace(trace, memory_bytes, decay)) for decay in decays]
    policies = {"lru": lru, "lfu": lfu, "belady": belady}
    return ours + [Replayed(name, None, run(trace, memory_bytes)) for name, run in policies.items()]


class Visit(NamedTuple):
    """Pages that one layer wants together."""

    keys: tuple[ExpertKey, ...]
    is_decode: bool


def list_visits(trace: Trace) -> Iterator[Visit]:
    """All of a trace in order; of a prompt each page once for each layer, and alone."""
    for forward in trace.forwards:
        for call in trace.calls(forward):
            ids = dict.fromkeys(call.expert_ids.ravel().tolist())
            keys = tuple(ExpertKey(call.layer_id, call.bank, expert_id) for expert_id in ids)
            if forward.is_decode:
                yield Visit(keys, is_decode=True)
            else:
                yield from (Visit((key,), is_decode=False) for key in sorted(keys))


def lru(trace: Trace, memory_bytes: int) -> PagingStats:
    """Evicts the page that was not used for the longest time."""
    clock = count()
    return _run(trace, memory_bytes, list_visits(trace), lambda _key, _visit: next(clock))


def lfu(trace: Trace, memory_bytes: int) -> PagingStats:
    """Evicts the page used least often since the beginning; of equals, the one used longest ago.

    A layer's use of a page in a prompt counts once, however many tokens chose it.
    """
    uses: Counter[ExpertKey] = Counter()
    clock = count()

    def worth(key: ExpertKey, _visit: int) -> float:
        uses[key] += 1
        return uses[key] + next(clock) / (1 << 32)

    return _run(trace, memory_bytes, list_visits(trace), worth)


def belady(trace: Trace, memory_bytes: int) -> PagingStats:
    """Evicts the page that a decoded token wants latest.

    No policy has more hits if pages are of one size. What a prompt wants does not count: prompts are not
    scored. With pages of several sizes it is a good bound, not an optimum.
    """
    following: dict[tuple[int, ExpertKey], float] = {}
    last: dict[ExpertKey, float] = {}
    visits = list(list_visits(trace))
    for index, visit in reversed(list(enumerate(visits))):
        for key in visit.keys:
            following[index, key] = last.get(key, math.inf)
            last[key] = index if visit.is_decode else math.inf
    return _run(trace, memory_bytes, visits, lambda key, visit: -following[visit, key])


def _run(
    trace: Trace, memory_bytes: int, visits: Iterable[Visit], worth: Callable[[ExpertKey, int], float]
) -> PagingStats:
    """Replay a memory that evicts the page of least worth(page, number of the visit)."""
    stats = PagingStats(banks={bank: BankStats() for bank in trace.banks})
    stats.decoded_tokens, stats.prompt_tokens = trace.decoded_tokens, trace.prompt_tokens
    worths: dict[ExpertKey, float] = {}  # of the pages that are there
    queue: list[tuple[float, ExpertKey]] = []
    room = memory_bytes
    for index, visit in enumerate(visits):
        missing = [key for key in visit.keys if key not in worths]
        num_bytes = sum(trace.page_bytes[key] for key in missing)
        _count(stats, visit, len(missing), num_bytes)
        room -= num_bytes
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


def _count(stats: PagingStats, visit: Visit, num_missing: int, num_bytes: int) -> None:
    bank, num_present = stats.banks[visit.keys[0].bank], len(visit.keys) - num_missing
    bank.bytes_read += num_bytes
    if visit.is_decode:
        bank.decode_misses += num_missing
        bank.decode_hits += num_present
        stats.decode_bytes_read += num_bytes
    else:
        bank.prompt_misses += num_missing
        bank.prompt_hits += num_present
