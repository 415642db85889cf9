"""Predicts what a chat takes of a GPU and of the RAM beside it.

These are predictions: weights are exact, what CUDA takes is assumed. They are for the Triton kernels; where
plain torch computes, `load` keeps some 30 MiB more for weights, and up to 8 for attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from ernie_local.errors import DoesNotFit
from ernie_local.kernels.gpu_capability import LEAST_CAPABILITY, multiplies_bfloat16
from ernie_local.model.host_parts import ALL_ON_GPU, HostParts
from ernie_local.model.memory_use import gpu_attention_way
from ernie_local.planner.fit import SLACK_BYTES, AvailableMemory, headroom_bytes
from ernie_local.planner.gpu_fit import GpuPlacement, least_gpu_total, place_on_gpu
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan
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


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """Bytes. slots_bytes: of the GPU, for experts in decode; text_bytes: what all text experts would take.

    ram_slots_bytes: of RAM, for experts that are not on the GPU; host_bytes: RAM of the process in which all
    experts lie. Floors, with which experts can be paged: least_bytes of the GPU, host_least_bytes of RAM.
    chat: with the KV cache that was chosen. decisions: what was chosen so that it fits, a line each. host:
    what the processor computes besides experts.
    """

    tier: Tier
    vram: MemoryPlan
    ram: MemoryPlan
    slots_bytes: int
    text_bytes: int
    host_bytes: int
    least_bytes: int
    chat: ChatPlan
    chunk_tokens: int
    decisions: tuple[str, ...] = ()
    ram_slots_bytes: int = 0
    host_least_bytes: int = 0
    host: HostParts = ALL_ON_GPU

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return self.tier not in ("needs ram", "does not fit")

    @property
    def resident_share(self) -> float:
        """Share of the text experts that are on the GPU in decode."""
        return min(1.0, self.slots_bytes / self.text_bytes) if self.text_bytes else 1.0

    @property
    def holds_text_experts(self) -> bool:
        """Whether it fits, with every text expert on the GPU in decode."""
        return self.fits and self.resident_share >= 1

    @property
    def memory_share(self) -> float:
        """Share of the text experts that are on the GPU or in RAM in decode."""
        held = _ONLY_ON_GPU * self.slots_bytes + self.ram_slots_bytes
        return max(self.resident_share, min(1.0, held / self.text_bytes)) if self.text_bytes else 1.0


def plan_gpu(
    model: ModelSize,
    chat: ChatPlan,
    vram_bytes: int,
    ram: Budget,
    capability: tuple[int, int] | None = None,
) -> GpuPlan:
    """All on the GPU if it fits, else experts in slots there and in RAM, the rest on disk, as `load` does it.

    vram_bytes: free on the GPU before the process starts. capability: its compute capability, None for a new
    one. Where it does not fit, the terms are those of the smallest way to run it.
    """
    need = _need(model, chat, capability)
    least = _CONTEXT.best + headroom_bytes() + least_gpu_total(need)
    try:
        placement, fits = _place(need, vram_bytes), True
    except DoesNotFit:
        placement, fits = _place(need, least), False
    memory_plan = partial(MemoryPlan.of, reads_images=model.config.reads_images)
    vram = memory_plan("vram", _terms(need, placement), vram_bytes, headroom_bytes())
    text_bytes, slots = need.weights.text_experts, vram.in_decode(_SLOTS)
    chosen = replace(chat, kv_dtype=placement.layout.kv_dtype), placement.chunk_tokens, placement.decisions
    host_terms = tuple(_host_terms(need, placement))
    if slots is None:
        host = memory_plan("ram", host_terms, ram.allowed_bytes)
        tier: Tier = "resident" if fits else "does not fit"
        return GpuPlan(
            tier, vram, host, text_bytes, text_bytes, 0, least, *chosen, host=placement.layout.host
        )
    plan = model.paging_plan
    assert plan is not None, "what is paged has pages"
    used = host_process_bytes(chat) + placement.host_bytes + SLACK_BYTES
    room = _room_in_ram(need, vram_bytes if fits else least, ram.memory(host_process_bytes(chat)))
    tier = "paged" if room >= plan.most_bytes else "paged from disk"
    if room < plan.least_bytes:
        tier = "needs ram"
    held = min(max(room, plan.least_bytes), plan.most_bytes) // plan.frame_bytes * plan.frame_bytes
    experts = Term.always("experts in RAM", "computed", Amount.exactly(held))
    host = memory_plan("ram", (*host_terms, experts), ram.allowed_bytes)
    return GpuPlan(
        tier if fits else "does not fit",
        vram,
        host,
        slots,
        text_bytes,
        used + plan.most_bytes,
        least,
        *chosen,
        ram_slots_bytes=held,
        host_least_bytes=used + plan.least_bytes,
        host=placement.layout.host,
    )


def host_process_bytes(chat: ChatPlan) -> int:
    """RAM of a process with a GPU, before weights are read; `load` counts no less than this."""
    return process_bytes(chat) + _HOST.best


def _room_in_ram(need: GpuNeed, vram_bytes: int, ram: AvailableMemory) -> int:
    """What `load` leaves of RAM to experts that are not on the GPU; 0 where it refuses."""
    try:
        return _place(need, vram_bytes, ram).paged_bytes or 0
    except DoesNotFit:
        return 0


def session_terms(model: ModelSize, chat: ChatPlan, num_gpus: int) -> list[Term]:
    """What a server holds besides its sessions' caches: weights once, and on each GPU a context and room."""
    need = _need(model, chat)
    layout = next(need.layouts())
    room = Amount(0, need.room_bytes(layout) + SLACK_BYTES, need.room_bytes(layout) + SLACK_BYTES)
    on_each = [_context_term(), Term.always("kept for images and chunks", "computed", room)]
    return [
        *(Term.always(term.name, term.provenance, sum([term.most] * num_gpus, NOTHING)) for term in on_each),
        *(Term.exact(part, num_bytes) for part, num_bytes in need.weights.parts.items() if num_bytes),
    ]


def _need(model: ModelSize, chat: ChatPlan, capability: tuple[int, int] | None = None) -> GpuNeed:
    has_triton = capability is None or capability >= LEAST_CAPABILITY
    return GpuNeed(
        config=model.config,
        chat=chat,
        weights=model.weights(chat.item_bytes, in_slots=True),
        plan=model.paging_plan,
        attention=gpu_attention_way(has_triton=has_triton),
        multiplies_bfloat16=multiplies_bfloat16(capability),
    )


def _place(need: GpuNeed, vram_bytes: int, ram: AvailableMemory = _ENOUGH_RAM) -> GpuPlacement:
    return place_on_gpu(need, ram, AvailableMemory.of_gpu(max(0, vram_bytes - _CONTEXT.best)))


def _context_term() -> Term:
    return Term.always("CUDA context and kernels", "assumed", _CONTEXT)


def _terms(need: GpuNeed, placement: GpuPlacement) -> Iterator[Term]:
    """What takes memory of the GPU; workspace is what is kept, as what is used of it is not known yet."""
    layout, parts = placement.layout, need.weights.parts
    yield _context_term()
    moved = need.moved_parts(layout)
    if placement.paged_bytes is not None:
        moved |= need.weights.expert_parts
    for part, num_bytes in parts.items():
        if left := num_bytes - moved.get(part, 0):
            yield Term.exact(part, left)
    window = need.window_bytes(layout)
    if window:
        yield Term("a part of the vision tower", "exact", {"vision": Amount.exactly(window)})
    rooms: dict[Phase, int] = {
        "vision": need.vision_bytes(layout) - window,
        "prefill": need.prefill_bytes(layout) - need.cache_bytes(layout),
    }
    yield Term(
        "kept for images and chunks",
        "computed",
        {phase: Amount(0, num_bytes, num_bytes) for phase, num_bytes in rooms.items()},
    )
    yield Term.always("kept for all else", "computed", Amount(0, SLACK_BYTES, SLACK_BYTES))
    full, first = need.cache_bytes(layout), need.cache_bytes(layout, 1)
    early = need.early_cache_bytes(layout)
    if placement.paged_bytes is None:
        cache = dict.fromkeys(("vision", "prefill", "decode"), Amount.exactly(full))
        yield Term("KV cache", "computed", cache)  # type: ignore[arg-type]
        return
    # Experts give way as the cache grows, also for an image that comes when it is full.
    exactly = Amount.exactly
    yield Term(
        "KV cache",
        "computed",
        {
            "load": exactly(first),
            "vision": exactly(early),
            "prefill": exactly(full),
            "decode": exactly(full),
        },
    )
    beside: dict[Phase, int] = {
        "load": first,
        "vision": early + rooms["vision"] + window,
        "prefill": full + rooms["prefill"],
        "decode": full,
    }
    slots = {phase: exactly(_slots(need, placement, taken)) for phase, taken in beside.items()}
    yield Term(_SLOTS, "computed", slots)


def _slots(need: GpuNeed, placement: GpuPlacement, taken: int) -> int:
    """Whole frames for experts beside what others have `taken`."""
    assert need.plan is not None
    frame = need.plan.frame_bytes
    return min(placement.shared_bytes - taken, need.plan.most_bytes) // frame * frame


def _host_terms(need: GpuNeed, placement: GpuPlacement) -> Iterator[Term]:
    yield Term.always("Python and torch", "measured", PROCESS)
    yield Term("opened images", "computed", {"load": Amount.exactly(need.chat.opened_bytes)})
    yield Term.always("CUDA's libraries", "assumed", _HOST)
    layout = placement.layout
    if num_bytes := need.host_weight_bytes(layout):
        yield Term.exact("other weights in RAM", num_bytes)
    cache, room = need.host_cache_bytes(layout), need.host_room_bytes(layout)
    if cache:
        grown = Amount(0, cache, cache)
        yield Term("KV cache in RAM", "computed", {"prefill": grown, "decode": grown})
        yield Term("attention in RAM", "computed", {"prefill": Amount(0, room, room)})
