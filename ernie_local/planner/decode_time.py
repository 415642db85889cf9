"""Seconds of a decoded token on the CPU, experts all in memory or paged from disk. Pure arithmetic.

The formula is that of reference/offload.md, section 7, for misses from disk, with two changes that measuring
asked for: experts that are there are computed while the missing ones are read, layer by layer, and each layer
and each missing page has costs of its own. Knows neither where hit rates come from nor any checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ernie_local.planner.rates import PagingCosts, Rates


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What one decoded text token asks of a machine.

    always_bytes: of weights that every token reads, by format: attention, shared experts, dense layers, head,
    routers. expert_bytes: of one routed expert of the text bank, in `expert_format`, as it lies in memory;
    page_bytes: as it lies on disk.
    """

    num_layers: int
    moe_layers: int
    experts_per_token: int
    always_bytes: Mapping[str, int]
    expert_bytes: int
    expert_format: str
    page_bytes: int


def decode_seconds(
    work: DecodeWork, rates: Rates, hit_rate: float | None = None, context_bytes: int = 0
) -> float:
    """Seconds of a token.

    hit_rate: share of a token's experts that are found in memory, from 0 to 1; None where all of them are
    resident and nothing is paged. context_bytes: of the KV cache, that attention reads.
    """
    seconds = rates.token_seconds + context_bytes / rates.memory_bytes_per_second
    seconds += work.num_layers * rates.layer_seconds
    seconds += sum(num_bytes / rates.bytes_per_second(name) for name, num_bytes in work.always_bytes.items())
    expert_seconds = work.expert_bytes / rates.bytes_per_second(work.expert_format)
    if hit_rate is None:
        return seconds + work.moe_layers * work.experts_per_token * expert_seconds
    return seconds + work.moe_layers * _paged_seconds(work, rates, hit_rate, expert_seconds)


def _paged_seconds(work: DecodeWork, rates: Rates, hit_rate: float, expert_seconds: float) -> float:
    """Of the routed experts of one layer: the mean over how many of them may be missing.

    The number of misses matters, not only its mean: a layer waits for the disk or for the CPU, whichever
    takes longer.
    """
    costs = PagingCosts(0.0, 0.0) if rates.paging is None else rates.paging
    top_k, page_seconds = work.experts_per_token, work.page_bytes / rates.disk_bytes_per_second
    mean = 0.0
    for misses in range(top_k + 1):
        chance = math.comb(top_k, misses) * (1 - hit_rate) ** misses * hit_rate ** (top_k - misses)
        beside = max((top_k - misses) * expert_seconds, misses * page_seconds)
        mean += chance * (beside + misses * (expert_seconds + costs.page_seconds))
    return costs.layer_seconds + mean
