"""What a conversation would take of a graphics GPU and of RAM beside it: the terms, and where experts go.

The placement is the one that `load` makes (gpu_placement.py). Nothing of this has run on a GPU yet, so
these are predictions: weights are exact, what CUDA takes is assumed. They are for the Triton kernels; where
plain torch computes, `load` keeps some 30 MiB more. Knows nothing of speed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, grown_tokens
from ernie_local.planner.conversation import Conversation
from ernie_local.planner.cpu_memory import PROCESS, Budget
from ernie_local.planner.gpu_placement import GpuLimits, gpu_room, headroom_bytes, place_beside_gpu
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.placement import SLACK_BYTES, MemoryNeed, Placement, least_limit, working_bytes
from ernie_local.planner.terms import Amount, MemoryPlan, Phase, Term
from ernie_local.sizes import MIB

Tier = Literal["resident", "paged", "needs ram", "does not fit"]
ITEM_BYTES = 2  # of a number on a GPU: bfloat16 or float16
_CONTEXT = Amount(250 * MIB, 450 * MIB, 800 * MIB)  # of CUDA, its libraries and kernels
_HOST = Amount(300 * MIB, 700 * MIB, 2000 * MIB)  # what CUDA's libraries take of RAM
_ENOUGH_RAM = 1 << 60
SLOTS = "slots of experts"
_COMPUTING: tuple[Phase, ...] = ("vision", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """slots_bytes: memory of the GPU for experts in decode, of which all text experts take `text_bytes`.

    host_bytes: RAM in which all experts lie; least_bytes: of a GPU, with which experts can be paged at all.
    """

    tier: Tier
    vram: MemoryPlan
    ram: MemoryPlan
    slots_bytes: int
    text_bytes: int
    host_bytes: int
    least_bytes: int

    @property
    def fits(self) -> bool:
        """Whether it would run without reading experts from disk for every token."""
        return self.tier in ("resident", "paged")

    @property
    def resident_share(self) -> float:
        """Share of the text experts that have room on the GPU in decode."""
        return min(1.0, self.slots_bytes / self.text_bytes) if self.text_bytes else 1.0


def plan_gpu(model: ModelSize, conversation: Conversation, vram_bytes: int, ram: Budget) -> GpuPlan:
    """Everything on the GPU if it fits, else experts in slots and all of them in RAM, as `load` places them.

    vram_bytes: of the GPU, what is free before the process begins. Where it does not fit, the terms are
    those of the smallest way to run it.
    """
    weights = model.weights(ITEM_BYTES)
    text_bytes = weights.text_experts
    need, room = _need(model, conversation), gpu_room(model.config, conversation.context_size, None)
    with_room = dataclasses.replace(need, kv_cache_bytes=need.kv_cache_bytes + room)
    beside = _CONTEXT.best + headroom_bytes()
    least = beside + least_limit(with_room, model.config.text, 0)
    try:
        placement, fits = _place(model, need, room, vram_bytes), True
    except DoesNotFit:
        placement, fits = _place(model, need, room, least), False
    terms = _terms(model, conversation, placement, room)
    vram = MemoryPlan("vram", terms, vram_bytes)
    slots = next((term.phases["decode"].best for term in terms if term.name == SLOTS), None)
    host = MemoryPlan("ram", _host_terms(0 if slots is None else weights.experts), ram.allowed_bytes)
    if slots is None:
        tier: Tier = "resident" if fits else "does not fit"
        return GpuPlan(tier, vram, host, text_bytes, text_bytes, 0, least)
    tier = "does not fit" if not fits else "paged" if host.fits else "needs ram"
    return GpuPlan(tier, vram, host, slots, text_bytes, host.peak.best, least)


def session_terms(model: ModelSize, session: Conversation, num_gpus: int) -> list[Term]:
    """What a server holds beside the caches of its sessions, over all GPUs: every weight once, and on each
    GPU a context and room to compute in."""
    weights = model.weights(ITEM_BYTES)
    room = gpu_room(model.config, session.context_size, None)
    shared = _fixed_terms(model, room, DEFAULT_CHUNK_TOKENS)
    terms = [
        Term(
            term.name,
            term.provenance,
            {phase: _times(amount, num_gpus) for phase, amount in term.phases.items()},
        )
        if term.provenance != "exact"
        else term
        for term in shared
    ]
    for part in weights.expert_parts:
        num_bytes = weights.parts.get(part, 0)
        terms += [Term.always(part, "exact", Amount.exactly(num_bytes))] if num_bytes else []
    return terms


def _times(amount: Amount, count: int) -> Amount:
    return Amount(amount.low * count, amount.best * count, amount.high * count)


def _need(model: ModelSize, conversation: Conversation) -> MemoryNeed:
    weights, plan = model.weights(ITEM_BYTES), model.paging_plan
    cache_bytes = _cache_bytes(model, conversation, conversation.context_size)
    return MemoryNeed(weights.dense, weights.experts, cache_bytes, None if plan is None else plan.least_bytes)


def _place(model: ModelSize, need: MemoryNeed, room_bytes: int, vram_bytes: int) -> Placement:
    # What RAM has to hold is looked at apart.
    limits = GpuLimits(max(0, vram_bytes - _CONTEXT.best), vram=None, ram=_ENOUGH_RAM, reserve=0)
    return place_beside_gpu(need, model.config, room_bytes, limits)


def _cache_bytes(model: ModelSize, conversation: Conversation, num_tokens: int) -> int:
    """Of a cache that holds so many tokens and grows."""
    held = grown_tokens(num_tokens, conversation.context_size)
    return held * conversation.kv_size(model.config.text).bytes_per_token


def _terms(
    model: ModelSize, conversation: Conversation, placement: Placement, room_bytes: int
) -> tuple[Term, ...]:
    """All of a GPU."""
    terms = _fixed_terms(model, room_bytes, placement.chunk_tokens)
    full = Amount.exactly(_cache_bytes(model, conversation, conversation.context_size))
    if placement.gpu_bytes is None:
        weights = model.weights(ITEM_BYTES)
        experts = ((part, weights.parts.get(part, 0)) for part in weights.expert_parts)
        terms += [Term.always(part, "exact", Amount.exactly(size)) for part, size in experts]
        terms.append(Term("KV cache", "computed", dict.fromkeys(_COMPUTING, full)))
    else:
        plan = model.paging_plan
        assert plan is not None
        # Experts give way as it grows; a later image would find it full: that is the high end.
        first = Amount.exactly(_cache_bytes(model, conversation, 1))
        early = Amount(first.best, first.best, full.best)
        cache: dict[Phase, Amount] = {"load": first, "vision": early, "prefill": full, "decode": full}
        slots: dict[Phase, Amount] = {}
        for phase, amount in cache.items():
            shared = min(plan.most_bytes, placement.gpu_bytes - amount.best)
            slots[phase] = Amount.exactly(shared // plan.frame_bytes * plan.frame_bytes)
        terms += [Term("KV cache", "computed", cache), Term(SLOTS, "computed", slots)]
    return tuple(term for term in terms if term.most.best)


def _fixed_terms(model: ModelSize, room_bytes: int, chunk_tokens: int) -> list[Term]:
    """All but experts and cache, as `load` keeps memory for it; what is really used is not known yet."""
    terms = [Term.always("CUDA context and kernels", "assumed", _CONTEXT)]
    weights = model.weights(ITEM_BYTES)
    for part, num_bytes in weights.parts.items():
        if part not in weights.expert_parts:
            terms.append(Term.always(part, "exact", Amount.exactly(num_bytes)))
    working = working_bytes(model.config.text, chunk_tokens) + SLACK_BYTES
    terms.append(Term.always("kept for attention, images", "computed", Amount(0, room_bytes, room_bytes)))
    terms.append(Term.always("kept for a chunk", "computed", Amount(0, working, working)))
    return terms


def _host_terms(expert_bytes: int) -> tuple[Term, ...]:
    terms = [
        Term.always("Python and torch", "measured", PROCESS),
        Term.always("CUDA's libraries", "assumed", _HOST),
    ]
    if expert_bytes:
        terms.append(Term.always("experts in RAM", "exact", Amount.exactly(expert_bytes)))
    return tuple(terms)
