"""Predicts what a chat takes of a GPU and of the RAM beside it.

These are predictions: weights are exact, what CUDA takes is assumed. They are for the Triton kernels; where
plain torch computes, `load` keeps some 30 MiB more for weights, and up to 8 for attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, grown_tokens
from ernie_local.planner import fit
from ernie_local.planner.fit import AvailableMemory, Placement, headroom_bytes
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan, MemoryNeed, chat_need_on_gpu, gpu_room, working_bytes
from ernie_local.planner.ram import PROCESS, Budget, process_bytes
from ernie_local.planner.terms import NOTHING, Amount, MemoryPlan, Phase, Term
from ernie_local.sizes import MIB

# paged: from RAM, which holds all experts; paged from disk: RAM holds a part of them.
Tier = Literal["resident", "paged", "paged from disk", "needs ram", "does not fit"]
_CONTEXT = Amount(250 * MIB, 450 * MIB, 800 * MIB)  # of CUDA, its libraries and kernels
_HOST = Amount(300 * MIB, 700 * MIB, 2000 * MIB)  # what CUDA's libraries take of RAM
_ENOUGH_RAM = AvailableMemory(1 << 60)  # the RAM is compared apart, so that both are told
_SLOTS = "slots of experts"
_ONLY_ON_GPU = 0.5  # of the GPU's pages, what RAM has no copy of (docs/decisions.md, "Planner")
_COMPUTING: tuple[Phase, ...] = ("vision", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """Bytes. slots_bytes: of the GPU, for experts in decode; text_bytes: what all text experts would take.

    ram_slots_bytes: of RAM, for experts that are not on the GPU; host_bytes: RAM of the process in which all
    experts lie. Floors, with which experts can be paged: least_bytes of the GPU, host_least_bytes of RAM.
    """

    tier: Tier
    vram: MemoryPlan
    ram: MemoryPlan
    slots_bytes: int
    text_bytes: int
    host_bytes: int
    least_bytes: int
    ram_slots_bytes: int = 0
    host_least_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return self.tier not in ("needs ram", "does not fit")

    @property
    def resident_share(self) -> float:
        """Share of the text experts that are on the GPU in decode."""
        return min(1.0, self.slots_bytes / self.text_bytes) if self.text_bytes else 1.0

    @property
    def memory_share(self) -> float:
        """Share of the text experts that are on the GPU or in RAM in decode."""
        held = _ONLY_ON_GPU * self.slots_bytes + self.ram_slots_bytes
        return min(1.0, held / self.text_bytes) if self.text_bytes else 1.0


def plan_gpu(model: ModelSize, chat: ChatPlan, vram_bytes: int, ram: Budget) -> GpuPlan:
    """All on the GPU if it fits, else experts in slots there and in RAM, the rest on disk, as `load` does it.

    vram_bytes: free on the GPU before the process starts. Where it does not fit, the terms are those of the
    smallest way to run it.
    """
    need = _need(model, chat)
    least = _CONTEXT.best + headroom_bytes() + fit.least_total(need, 0)
    try:
        placement, fits = _place(need, vram_bytes), True
    except DoesNotFit:
        placement, fits = _place(need, least), False
    vram = MemoryPlan("vram", _terms(model, chat, placement, need), vram_bytes)
    text_bytes = model.weights(chat.item_bytes, in_slots=True).text_experts
    slots = vram.in_decode(_SLOTS)
    if slots is None:
        host = MemoryPlan("ram", _host_terms(chat), ram.allowed_bytes)
        return GpuPlan("resident" if fits else "does not fit", vram, host, text_bytes, text_bytes, 0, least)
    plan = model.paging_plan
    assert plan is not None, "what is paged has pages"
    used = host_process_bytes(chat) + fit.SLACK_BYTES
    room = _room_in_ram(need, vram_bytes if fits else least, ram.memory(host_process_bytes(chat)))
    tier: Tier = "paged" if room >= plan.most_bytes else "paged from disk"
    if room < plan.least_bytes:
        tier = "needs ram"
    held = min(max(room, plan.least_bytes), plan.most_bytes) // plan.frame_bytes * plan.frame_bytes
    experts = Term.always("experts in RAM", "computed", Amount.exactly(held))
    host = MemoryPlan("ram", (*_host_terms(chat), experts), ram.allowed_bytes)
    return GpuPlan(
        tier if fits else "does not fit",
        vram,
        host,
        slots,
        text_bytes,
        host_bytes=used + plan.most_bytes,
        least_bytes=least,
        ram_slots_bytes=held,
        host_least_bytes=used + plan.least_bytes,
    )


def host_process_bytes(chat: ChatPlan) -> int:
    """RAM of a process with a GPU, before weights are read; `load` counts no less than this."""
    return process_bytes(chat) + _HOST.best


def _room_in_ram(need: MemoryNeed, vram_bytes: int, ram: AvailableMemory) -> int:
    """What `load` leaves of RAM to experts that are not on the GPU; 0 where it refuses."""
    try:
        return _place(need, vram_bytes, ram).paged_bytes or 0
    except DoesNotFit:
        return 0


def _host_terms(chat: ChatPlan) -> tuple[Term, ...]:
    return (
        Term.always("Python and torch", "measured", PROCESS),
        Term("opened images", "computed", {"load": Amount.exactly(chat.opened_bytes)}),
        Term.always("CUDA's libraries", "assumed", _HOST),
    )


def session_terms(model: ModelSize, chat: ChatPlan, num_gpus: int) -> list[Term]:
    """What a server holds besides its sessions' caches: weights once, and on each GPU a context and room."""
    room_bytes = gpu_room(model.config, chat)
    terms = [
        term
        if term.provenance == "exact"
        else Term.always(term.name, term.provenance, sum([term.most] * num_gpus, NOTHING))
        for term in _fixed_terms(model, chat, room_bytes, DEFAULT_CHUNK_TOKENS)
    ]
    return terms + _expert_terms(model, chat)


def _need(model: ModelSize, chat: ChatPlan) -> MemoryNeed:
    weights, plan = model.weights(chat.item_bytes, in_slots=True), model.paging_plan
    need = MemoryNeed.of_weights(model.config.text, weights, plan)
    return chat_need_on_gpu(need, model.config, chat)


def _place(need: MemoryNeed, vram_bytes: int, ram: AvailableMemory = _ENOUGH_RAM) -> Placement:
    return fit.place(need, ram, AvailableMemory.of_gpu(max(0, vram_bytes - _CONTEXT.best)))


def _cache_bytes(model: ModelSize, chat: ChatPlan, num_tokens: int) -> int:
    """A growing cache that holds `num_tokens`."""
    held = grown_tokens(num_tokens, chat.context_size)
    return held * chat.kv_size(model.config.text).bytes_per_token


def _terms(model: ModelSize, chat: ChatPlan, placement: Placement, need: MemoryNeed) -> tuple[Term, ...]:
    terms = _fixed_terms(model, chat, need.room_bytes or 0, placement.chunk_tokens)
    full = Amount.exactly(need.cache_bytes)
    if placement.gpu_bytes is None:
        terms += [*_expert_terms(model, chat), Term("KV cache", "computed", dict.fromkeys(_COMPUTING, full))]
    else:
        plan = model.paging_plan
        assert plan is not None
        # Experts give way as the cache grows. High end: an image that comes when it is full.
        first = Amount.exactly(_cache_bytes(model, chat, 1))
        early = Amount(first.best, first.best, full.best)
        cache: dict[Phase, Amount] = {"load": first, "vision": early, "prefill": full, "decode": full}
        slots: dict[Phase, Amount] = {}
        for phase, amount in cache.items():
            shared = min(plan.most_bytes, placement.gpu_bytes - amount.best)
            slots[phase] = Amount.exactly(shared // plan.frame_bytes * plan.frame_bytes)
        terms += [Term("KV cache", "computed", cache), Term(_SLOTS, "computed", slots)]
    return tuple(term for term in terms if term.most.best)


def _fixed_terms(model: ModelSize, chat: ChatPlan, room_bytes: int, chunk_tokens: int) -> list[Term]:
    """All but experts and cache, as `load` keeps memory for it; what is really used is not known yet."""
    weights = model.weights(chat.item_bytes, in_slots=True)
    dense = weights.parts.keys() - weights.expert_parts.keys()
    working = working_bytes(model.config.text, chunk_tokens) + fit.SLACK_BYTES
    return [
        Term.always("CUDA context and kernels", "assumed", _CONTEXT),
        *(Term.exact(part, num_bytes) for part, num_bytes in weights.parts.items() if part in dense),
        Term.always("kept for attention, images", "computed", Amount(0, room_bytes, room_bytes)),
        Term.always("kept for a chunk", "computed", Amount(0, working, working)),
    ]


def _expert_terms(model: ModelSize, chat: ChatPlan) -> list[Term]:
    parts = model.weights(chat.item_bytes, in_slots=True).expert_parts
    return [Term.exact(part, num_bytes) for part, num_bytes in parts.items() if num_bytes]
