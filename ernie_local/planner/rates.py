"""Predicts the seconds of a decoded token on the CPU from bytes to read and the rates of a machine.

Misses are read from disk while experts that are in memory are computed, layer by layer; each layer and each
missing page has costs of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from ernie_local.checkpoint.parts import ModelTensor, experts_part
from ernie_local.config import ModelConfig
from ernie_local.planner.weight_bytes import WEIGHT_ITEM_BYTES, WeightBytes, bytes_in_memory

# What a stored profile may say: something is divided by each rate.
Rate = Annotated[float, Meta(gt=0, le=1 << 60)]
Seconds = Annotated[float, Meta(ge=0, le=1 << 60)]
_ALWAYS_READ = ("attention", "shared experts", "dense layers", "routers", "norms", "head")  # by every token


@dataclass(frozen=True, slots=True)
class GpuRates:
    """Rates of a GPU: its memory as kernels read it, the link to it, and its arithmetic in a prompt."""

    memory_bytes_per_second: Rate
    link_bytes_per_second: Rate
    operations_per_second: Rate


@dataclass(frozen=True, slots=True)
class PagingCosts:
    """What paging costs a decoded token besides the disk: in each layer, and for each missing page."""

    layer_seconds: Seconds
    page_seconds: Seconds


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of a machine.

    disk_bytes_per_second: reads of one expert's size, several at a time. memory_bytes_per_second: packed
    weights as the CPU's kernels read them for one token. operations_per_second: multiplications and
    additions, each counted, of the CPU in a prompt. token_seconds: a decoded token without its layers;
    layer_seconds: each of its layers without reading weights, attention to few tokens included.
    format_rates: as memory_bytes_per_second, by the name of a format, where it differs.
    """

    disk_bytes_per_second: Rate
    memory_bytes_per_second: Rate
    operations_per_second: Rate
    token_seconds: Seconds
    layer_seconds: Seconds
    gpu: GpuRates | None = None
    paging: PagingCosts | None = None
    format_rates: Mapping[str, Rate] = field(default_factory=dict)

    def slowed(self, share: float) -> Rates:
        """The rates where weights are read at this share of their rates."""
        formats = {name: share * rate for name, rate in self.format_rates.items()}
        memory = share * self.memory_bytes_per_second
        return dataclasses.replace(self, memory_bytes_per_second=memory, format_rates=formats)

    def bytes_per_second(self, format_name: str) -> float:
        """Weights in this format, such as `w4` or `bfloat16`, read for one token on the CPU."""
        return self.format_rates.get(format_name, self.memory_bytes_per_second)


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What one decoded text token asks of a machine.

    always_bytes: weights that every token reads, by format. expert_bytes: one routed expert of the text bank,
    in `expert_format`, as it lies in memory; page_bytes: as it lies on disk; both are means.
    """

    num_layers: int
    moe_layers: int
    experts_per_token: int
    always_bytes: Mapping[str, int]
    expert_bytes: int
    expert_format: str
    page_bytes: int


def count_decode_work(
    tensors: Sequence[ModelTensor], config: ModelConfig, weights: WeightBytes, dtype: str
) -> DecodeWork:
    """For a model that computes with plain weights in `dtype`, and takes `weights` in memory."""
    text = config.text
    decoding = text.text_bank
    idle_routers = tuple(f"{bank.name}_router" for bank in text.banks if bank is not decoding)
    is_tied = all(tensor.part != "head" for tensor in tensors)
    always_read = (*_ALWAYS_READ, "embedding") if is_tied else _ALWAYS_READ
    always: Counter[str] = Counter()
    experts: Counter[str] = Counter()
    page_bytes = 0
    for tensor in tensors:
        part = tensor.part
        plain_format = "float32" if part == "routers" else dtype
        format_name = tensor.format_name.partition("-")[0] if tensor.is_packed else plain_format
        if decoding is not None and part == experts_part(decoding.name):
            experts[format_name] += tensor.weights
            page_bytes += tensor.num_bytes
        elif part in always_read and not any(router in tensor.name for router in idle_routers):
            always[format_name] += bytes_in_memory(tensor, WEIGHT_ITEM_BYTES[dtype])
    num_experts = sum(text.moe_layers) * decoding.num_experts if decoding is not None else 1
    return DecodeWork(
        num_layers=text.num_hidden_layers,
        moe_layers=sum(text.moe_layers),
        experts_per_token=text.experts_per_token,
        always_bytes=dict(always),
        expert_bytes=weights.text_experts // num_experts,
        expert_format=experts.most_common(1)[0][0] if experts else dtype,
        page_bytes=page_bytes // num_experts,
    )


def decode_seconds(
    work: DecodeWork, rates: Rates, hit_rate: float | None = None, context_bytes: int = 0
) -> float:
    """Seconds of a token.

    hit_rate: share of a token's experts that are found in memory, from 0 to 1; None where all are resident
    and nothing is paged. context_bytes: of the KV cache, read by attention.
    """
    seconds = rates.token_seconds + context_bytes / rates.memory_bytes_per_second
    seconds += work.num_layers * rates.layer_seconds
    seconds += sum(num_bytes / rates.bytes_per_second(name) for name, num_bytes in work.always_bytes.items())
    expert_seconds = work.expert_bytes / rates.bytes_per_second(work.expert_format)
    if hit_rate is None:
        return seconds + work.moe_layers * work.experts_per_token * expert_seconds
    return seconds + work.moe_layers * _paged_seconds(work, rates, hit_rate, expert_seconds)


def _paged_seconds(work: DecodeWork, rates: Rates, hit_rate: float, expert_seconds: float) -> float:
    """Seconds of the routed experts of one layer: the mean over how many of them are missing.

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
