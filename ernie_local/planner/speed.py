"""Predicts tokens a second in decode and prefill, from bytes to read, arithmetic, and a machine's rates.

On the CPU by the formula of rates.py; on a GPU, where nothing was measured, missing experts come over the
link after those that are there have been computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ernie_local.checkpoint.parts import experts_part
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS
from ernie_local.planner.gpu import GpuPlan
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.rates import GpuRates, Rates, decode_seconds

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
    """decode, prefill: tokens a second, prefill None where it is unknown; is_measured: on this machine."""

    decode: Band
    prefill: Band | None
    hits: HitRates
    is_measured: bool


def cpu_speed(model: ModelSize, chat: ChatPlan, share: float | None, rates: Rates | None = None) -> Speed:
    """share: of the text experts that are in memory, None where nothing is paged. rates: None for assumed."""
    known, band = (ASSUMED, _ASSUMED_BAND) if rates is None else (rates, _MEASURED_BAND)
    work, context_bytes = model.decode_work(chat.dtype), _context_bytes(model, chat)
    hits = HitRates.of(1.0 if share is None else share)

    def tokens_a_second(hit_rate: float) -> float:
        return 1 / decode_seconds(work, known, None if share is None else hit_rate, context_bytes)

    prefill = Band.about(known.operations_per_second / operations_per_token(model), band)
    return Speed(hits.band(tokens_a_second, band), prefill, hits, rates is not None)


def gpu_speed(model: ModelSize, chat: ChatPlan, plan: GpuPlan, rates: GpuRates) -> Speed:
    """On a GPU with these rates, where missing experts come from RAM over the link."""
    work = model.decode_work(chat.dtype)
    always = sum(work.always_bytes.values()) + _context_bytes(model, chat)
    routed = work.moe_layers * work.experts_per_token * work.expert_bytes
    hits = HitRates.of(1.0 if plan.tier == "resident" else plan.resident_share)
    fixed = _GPU_TOKEN_SECONDS + work.num_layers * _GPU_LAYER_SECONDS

    def tokens_a_second(hit_rate: float) -> float:
        on_gpu = (always + hit_rate * routed) / rates.memory_bytes_per_second
        return 1 / (fixed + on_gpu + (1 - hit_rate) * routed / rates.link_bytes_per_second)

    prefill = _gpu_prefill(model, chat, plan, rates)
    return Speed(hits.band(tokens_a_second, _GPU_BAND), prefill, hits, is_measured=False)


def _gpu_prefill(model: ModelSize, chat: ChatPlan, plan: GpuPlan, rates: GpuRates) -> Band:
    """A chunk takes as long as its arithmetic or, where experts are missing, their way over the link."""
    chunk = min(DEFAULT_CHUNK_TOKENS, chat.context_size)
    seconds = chunk * operations_per_token(model) / rates.operations_per_second
    if plan.tier != "resident":
        streamed = plan.text_bytes * (1 - plan.resident_share)
        seconds = max(seconds, streamed / rates.link_bytes_per_second)
    return Band.about(chunk / seconds, _ASSUMED_BAND)


def _context_bytes(model: ModelSize, chat: ChatPlan) -> int:
    """Of the KV cache that a token in the middle of the chat reads."""
    return chat.kv_size(model.config.text).bytes_per_token * chat.context_size // 2


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
