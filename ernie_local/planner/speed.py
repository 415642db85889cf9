"""Predicts tokens a second in decode and prefill, from bytes to read, arithmetic, and a machine's rates.

On the CPU by the formula of rates.py; on a GPU, where nothing was measured, with the experts that it lacks by
the formula of tiers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ernie_local.checkpoint.parts import experts_part
from ernie_local.experts.options import MISS_RULES, MissRule
from ernie_local.planner.gpu import GpuPlan
from ernie_local.planner.host_work import HostWork, context_bytes
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.rates import GpuRates, Rates, decode_seconds
from ernie_local.planner.tiers import ExpertTimes, layer_seconds

# Of a machine that was not measured: two server cores with DDR4, a solid-state disk.
ASSUMED = Rates(
    disk_bytes_per_second=1.5e9,
    memory_bytes_per_second=25e9,
    operations_per_second=0.6e12,
    token_seconds=0.001,
    layer_seconds=0.00022,
)
# The true number lies between these multiples of the likely one.
_ASSUMED_BAND, _MEASURED_BAND, _GPU_BAND = (0.5, 2.0), (0.85, 1.15), (0.5, 1.3)
# Share of the text experts in memory, and share of a decoded token's experts that is found there: of 64
# experts, between uniform routing and routing that sticks (docs/performance.md, "Which pages stay").
_TRACED = ((0.0, 0.0), (0.3, 0.42), (0.5, 0.6), (0.83, 0.88), (1.0, 1.0))
_STICKY = ((0.0, 0.0), (0.25, 0.54), (0.5, 0.72), (0.75, 0.87), (1.0, 1.0))
# A GPU's work between reading weights: a launch and a look at the router in each layer. Assumed.
_GPU_TOKEN_SECONDS, _GPU_LAYER_SECONDS = 0.004, 0.0001
_CHANGE = 0.3  # of a rate, to see what a prediction hangs on


@dataclass(frozen=True, slots=True)
class Band:
    """Tokens a second: the likely number between a low and a high one."""

    low: float
    best: float
    high: float

    @staticmethod
    def about(speed: float, factors: tuple[float, float]) -> Band:
        """Around a likely speed."""
        return Band(factors[0] * speed, speed, factors[1] * speed)


@dataclass(frozen=True, slots=True)
class HitRates:
    """Shares of a decoded token's experts that are in memory: with even, traced and sticky routing."""

    uniform: float
    traced: float
    sticky: float

    @staticmethod
    def of(share: float) -> HitRates:
        """share: of the text experts that are in memory."""
        bounded = min(1.0, max(0.0, share))
        return HitRates(bounded, _between(_TRACED, bounded), _between(_STICKY, bounded))

    def band(self, speed_at: Callable[[float], float], factors: tuple[float, float]) -> Band:
        """From even to sticky routing, widened by the factors. speed_at: of a share of experts."""
        low, high = factors
        return Band(low * speed_at(self.uniform), speed_at(self.traced), high * speed_at(self.sticky))


@dataclass(frozen=True, slots=True)
class Speed:
    """decode, prefill: tokens a second, prefill None where it is unknown; is_measured: on this machine.

    hits: in the memory that computes; memory_hits: there or in RAM below it, None without a GPU.
    by_miss_rule: likely decode under each rule for experts that the GPU lacks, the fastest of which `decode`
    is of; empty where it lacks none.
    """

    decode: Band
    prefill: Band | None
    hits: HitRates
    is_measured: bool
    memory_hits: HitRates | None = None
    by_miss_rule: Mapping[str, float] = field(default_factory=dict)

    @property
    def miss_rule(self) -> str | None:
        """The fastest rule; None where the GPU lacks no expert."""
        return max(self.by_miss_rule, key=self.by_miss_rule.__getitem__, default=None)


def cpu_speed(
    model: ModelSize,
    chat: ChatPlan,
    share: float | None,
    rates: Rates = ASSUMED,
    *,
    is_measured: bool = False,
) -> Speed:
    """share: of the text experts that are in memory, None where nothing is paged; is_measured: the rates."""
    band = _MEASURED_BAND if is_measured else _ASSUMED_BAND
    work, cache_bytes = model.decode_work(chat.dtype), context_bytes(model, chat)
    hits = HitRates.of(1.0 if share is None else share)

    def tokens_a_second(hit_rate: float) -> float:
        return 1 / decode_seconds(work, rates, None if share is None else hit_rate, cache_bytes)

    prefill = Band.about(rates.operations_per_second / operations_per_token(model), band)
    return Speed(hits.band(tokens_a_second, band), prefill, hits, is_measured)


def gpu_speed(model: ModelSize, plan: GpuPlan, rates: GpuRates, host: Rates = ASSUMED) -> Speed:
    """On a GPU with these rates, in a machine of the rates `host`, under the fastest miss rule."""
    is_resident = plan.tier == "resident"
    hits = HitRates.of(1.0 if is_resident else plan.resident_share)
    memory_hits = HitRates.of(1.0 if is_resident else plan.memory_share)
    tokens_a_second = _gpu_decode(model, plan, rates, host)
    by_rule = {
        name: tokens_a_second(hits.traced, memory_hits.traced, rule) for name, rule in MISS_RULES.items()
    }
    rule = MISS_RULES[max(by_rule, key=by_rule.__getitem__)]
    low, high = _GPU_BAND
    decode = Band(
        low * tokens_a_second(hits.uniform, memory_hits.uniform, rule),
        tokens_a_second(hits.traced, memory_hits.traced, rule),
        high * tokens_a_second(hits.sticky, memory_hits.sticky, rule),
    )
    prefill = _gpu_prefill(model, plan, rates, host)
    return Speed(decode, prefill, hits, False, memory_hits, {} if hits.uniform >= 1 else by_rule)


def gpu_sensitivity(
    model: ModelSize, plan: GpuPlan, rates: GpuRates, host: Rates = ASSUMED
) -> dict[str, Band]:
    """What 30 % less and more of each assumed rate make of `gpu_speed`, under the fastest rule each time.

    By what is changed: `link`, `cpu`, `disk`, `hits`, the share of experts that are found in memory. Empty
    where the GPU lacks no expert.
    """
    if plan.tier == "resident":
        return {}
    hit_rate, memory_hit_rate = (
        HitRates.of(share).traced for share in (plan.resident_share, plan.memory_share)
    )

    def fastest(link: float = 1.0, cpu: float = 1.0, disk: float = 1.0, hits: float = 1.0) -> float:
        gpu = replace(rates, link_bytes_per_second=link * rates.link_bytes_per_second)
        below = replace(host.slowed(cpu), disk_bytes_per_second=disk * host.disk_bytes_per_second)
        tokens_a_second = _gpu_decode(model, plan, gpu, below)
        in_memory = 1.0 if memory_hit_rate >= 1 else min(1.0, hits * memory_hit_rate)
        found = min(in_memory, hits * hit_rate), in_memory
        return max(tokens_a_second(*found, rule) for rule in MISS_RULES.values())

    changed = [name for name in ("link", "cpu", "disk", "hits") if name != "disk" or memory_hit_rate < 1]
    less, more = 1 - _CHANGE, 1 + _CHANGE
    return {name: Band(fastest(**{name: less}), fastest(), fastest(**{name: more})) for name in changed}


def _gpu_decode(
    model: ModelSize, plan: GpuPlan, rates: GpuRates, host: Rates
) -> Callable[[float, float, MissRule], float]:
    """Tokens a second by the share of experts on the GPU, the share there or in RAM, and the miss rule."""
    chat, on_host = plan.chat, HostWork.of(model, plan.chat, plan.host)
    work = model.decode_work(chat.dtype)
    always = sum(work.always_bytes.values()) + context_bytes(model, chat) - on_host.all_bytes
    fixed = _GPU_TOKEN_SECONDS + work.num_layers * _GPU_LAYER_SECONDS + on_host.decode_seconds(host)
    fixed += always / rates.memory_bytes_per_second
    times = ExpertTimes.of(work, rates, host)

    def tokens_a_second(hit_rate: float, memory_hit_rate: float, rule: MissRule) -> float:
        of_layer = layer_seconds(times, work.experts_per_token, hit_rate, memory_hit_rate, rule)
        return 1 / (fixed + work.moe_layers * of_layer)

    return tokens_a_second


def _gpu_prefill(model: ModelSize, plan: GpuPlan, rates: GpuRates, host: Rates) -> Band:
    """A chunk takes as long as its arithmetic or, where experts are missing, their way to the GPU."""
    chunk = min(plan.chunk_tokens, plan.chat.context_size)
    seconds = chunk * operations_per_token(model) / rates.operations_per_second
    if plan.tier != "resident":
        streamed = plan.text_bytes * (1 - plan.resident_share)
        read = plan.text_bytes * (1 - plan.memory_share)
        seconds = max(seconds, streamed / rates.link_bytes_per_second, read / host.disk_bytes_per_second)
    seconds += chunk * HostWork.of(model, plan.chat, plan.host).prompt_seconds(host)
    return Band.about(chunk / seconds, _ASSUMED_BAND)


def operations_per_token(model: ModelSize) -> float:
    """Multiplications and additions, each counted, of a text token in a prompt, without attention scores."""
    weights = {part.name: part.weights for part in model.parts}
    text = model.config.text
    active = sum(weights.get(part, 0) for part in ("attention", "shared experts", "dense layers", "routers"))
    if (bank := text.text_bank) is not None:
        active += weights[experts_part(bank.name)] * text.experts_per_token // bank.num_experts
    return 2.0 * active


def _between(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Linear between the points of the curve, from 0 to 1."""
    (left, low), (right, high) = next(pair for pair in pairwise(curve) if share <= pair[1][0])
    return low + (high - low) * (share - left) / (right - left)
