"""A trace run again through the cache of pages, without weights: what would have been found, what read.

The very calls, in the very order, that the runtime makes (page_traffic.py), so that its counters are those of
the runtime. Textbook policies on the same trace are in textbook.py. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from ernie_local.experts.heat import DEFAULT_DECAY, ExpertKey
from ernie_local.experts.page_traffic import PageTraffic
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.experts.paging_stats import PagingStats
from ernie_local.experts.trace import Trace


class _NoReader:
    """A PageReader whose pages are there at once."""

    def start(self, key: ExpertKey) -> None:
        pass

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        pass

    def abandon(self) -> None:
        pass


def replay(trace: Trace, memory_bytes: int, decay: float = DEFAULT_DECAY) -> PagingStats:
    """What paging counts, seconds left out, with experts in at most `memory_bytes`.

    memory_bytes: at least the plan's `least_bytes`.
    """
    plan = PagingPlan(trace.page_bytes, trace.top_k)
    traffic = PageTraffic(plan.build(memory_bytes, decay), plan, trace.page_bytes, _NoReader())
    for forward in trace.forwards:
        is_decode = traffic.begin(forward.tokens)
        for call in trace.calls(forward):
            keys = traffic.keys[call.layer_id, call.bank]
            chosen = [keys[expert_id] for expert_id in call.expert_ids.ravel().tolist()]
            if is_decode:
                present, missing = traffic.start_decode(call.bank, chosen)
                if missing:
                    traffic.receive(missing)
                    traffic.end_decode(present, missing)
            else:
                for _ in traffic.stream(call.layer_id, call.bank, chosen, len(call.expert_ids)):
                    pass
    return traffic.stats
