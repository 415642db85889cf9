"""A trace run again through the cache of pages, without weights: what would have been found, what read.

The very calls, in the very order, that the runtime makes (page_traffic.py), so that its counters are those of
the runtime as long as its memory stays the same: what a conversation takes of it is not in a trace. Textbook
policies on the same trace are in textbook.py. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ernie_local.config import Bank
from ernie_local.errors import DoesNotFit
from ernie_local.experts import textbook
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_traffic import PageGroup, PageTraffic
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.experts.paging_stats import PagingStats
from ernie_local.experts.trace import Trace
from ernie_local.experts.two_levels import TwoLevels
from ernie_local.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one policy did with a trace; `decay` is that of our own, None where it finds its decay itself."""

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


class Step(NamedTuple):
    """What one layer asks of one bank. is_first: of its forward."""

    is_decode: bool
    is_first: bool
    groups: Iterator[PageGroup]


class _NoReader:
    """A PageReader whose pages are there at once."""

    def start(self, key: ExpertKey) -> None:
        pass

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        pass

    def abandon(self) -> None:
        pass


def replay(trace: Trace, memory_bytes: int, decay: float | None = None) -> PagingStats:
    """What paging counts, seconds left out, with experts in at most `memory_bytes`.

    memory_bytes: at least the plan's `least_bytes`. decay: as for `PagingPlan.build`.
    """
    plan = PagingPlan(trace.page_bytes, trace.top_k)
    traffic = PageTraffic(plan.build(memory_bytes, decay), plan, trace.page_bytes, _NoReader())
    for step in walk(trace, traffic, traffic.keys):
        for _ in step.groups:
            pass
    return traffic.stats


def walk(
    trace: Trace,
    traffic: PageTraffic | TwoLevels,
    keys: Mapping[tuple[int, Bank], Sequence[ExpertKey]],
) -> Iterator[Step]:
    """Every call of a trace in order, as the runtime makes it; each one's groups are gone through before the
    next is asked for. keys: as a PageTraffic has them."""
    for forward in trace.forwards:
        is_decode = traffic.begin(forward.tokens)
        is_first = True
        for call in trace.calls(forward):
            of_bank = keys[call.layer_id, call.bank]
            chosen = [of_bank[expert_id] for expert_id in call.expert_ids.ravel().tolist()]
            if is_decode:
                groups = traffic.decode(call.bank, chosen)
            else:
                groups = traffic.stream(call.layer_id, call.bank, chosen, len(call.expert_ids))
            yield Step(is_decode, is_first, groups)
            is_first = False


def least_bytes(trace: Trace) -> int:
    """The least memory in which this model's experts can be paged."""
    return PagingPlan(trace.page_bytes, trace.top_k).least_bytes


def most_bytes(trace: Trace) -> int:
    """The memory in which every page of this model has room."""
    return PagingPlan(trace.page_bytes, trace.top_k).most_bytes


def check_budget(trace: Trace, memory_bytes: int) -> None:
    """Raise DoesNotFit for a memory in which this model's experts cannot be paged."""
    least = least_bytes(trace)
    if memory_bytes < least:
        raise DoesNotFit(
            f"{format_bytes(memory_bytes)} for experts of {trace.model}, {format_bytes(least)} are needed",
            f"the {trace.top_k} experts of a token must lie in memory together, of whatever size they are",
            f"give {least} bytes or more",
        )


def compare(trace: Trace, memory_bytes: int, decays: Sequence[float | None] = (None,)) -> list[Replayed]:
    """Our policy with each decay, and the textbooks' in the same bytes; DoesNotFit as `check_budget`."""
    check_budget(trace, memory_bytes)
    ours = [Replayed("ours", decay, replay(trace, memory_bytes, decay)) for decay in decays]
    policies = {"lru": textbook.lru, "lfu": textbook.lfu, "belady": textbook.belady}
    return ours + [Replayed(name, None, run(trace, memory_bytes)) for name, run in policies.items()]
