"""Predicts what a chat takes of RAM where the CPU computes, term by term, as `load` places it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ernie_local.checkpoint.parts import IMAGE_PARTS
from ernie_local.defaults import feature_bytes
from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import (
    FLOAT_BYTES,
    encoding_bytes,
    mixed_chunk_bytes,
    working_bytes,
)
from ernie_local.planner import fit
from ernie_local.planner.fit import AvailableMemory, Placement, default_reserve, place
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan, MemoryNeed, chat_need, compiled_bytes
from ernie_local.planner.terms import NOTHING, Amount, MemoryPlan, Phase, Term
from ernie_local.planner.weight_bytes import ADAPTERS_PART
from ernie_local.sizes import HUGE_PAGE, MIB

# Python with torch and this package when loading begins (246 to 249 MiB, by processor), and what comes later:
# modules, stacks of threads, leftovers of an allocator. Torch 2.13 for the CPU (docs/performance.md).
PROCESS = Amount(215 * MIB, 252 * MIB, 290 * MIB)
_LATE = Amount(5 * MIB, 26 * MIB, 100 * MIB)
# Of the bytes kept free for a chunk: memory freed by one layer does not always suit the next.
_CHUNK_SHARE = 1.12
_ENCODING_SHARE = 0.92  # of the bytes kept free for the tower, what it really takes
_SLOTS = "slots of paged experts"
_AFTER_LOAD: tuple[Phase, ...] = ("vision", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Budget:
    """RAM that the process may take, in bytes.

    limit_bytes: of the whole process; None for what is free, less the reserve. free_bytes: free before the
    process starts; None on another machine, which has what the limit says. reserve_bytes: None for the
    default.
    """

    limit_bytes: int | None
    free_bytes: int | None = None
    reserve_bytes: int | None = None

    @property
    def allowed_bytes(self) -> int | None:
        """What the process may take; None where nothing is known."""
        if self.limit_bytes is not None:
            return self.limit_bytes
        if self.free_bytes is None:
            return None
        reserve = default_reserve(self.free_bytes) if self.reserve_bytes is None else self.reserve_bytes
        return max(0, self.free_bytes - reserve)

    def memory(self, used: int) -> AvailableMemory:
        """As `load` finds it in a process that has `used` bytes."""
        assumed = self.limit_bytes or 1 << 60
        free = assumed if self.free_bytes is None else max(0, self.free_bytes - used)
        return AvailableMemory.of_ram(self.limit_bytes, self.reserve_bytes, used=used, free=free)


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """placement: as `load` decides it, None where it refuses. least_bytes: the smallest limit it accepts.

    resident_bytes: the smallest limit with every expert in memory. slots_bytes: memory for experts in decode,
    None where all are resident; resident_share: of the text experts that are in memory then.
    """

    memory: MemoryPlan
    placement: Placement | None
    least_bytes: int
    resident_bytes: int
    slots_bytes: int | None
    resident_share: float

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return self.placement is not None


def plan_cpu(model: ModelSize, chat: ChatPlan, budget: Budget) -> CpuPlan:
    """The terms of a chat that fills its context, with experts where `load` puts them.

    Where it does not fit, the terms are those of the smallest way to run it.
    """
    need, used = _need(model, chat, budget), process_bytes(chat)
    least = fit.least_total(need, used)
    placement: Placement | None = None
    with suppress(DoesNotFit):
        placement = place(need, budget.memory(used))
    if placement is not None and placement.paged_bytes is not None:
        # Without a limit `load` places a usual conversation; this chat fills its context.
        enough = need.paged_bytes(placement.chunk_tokens, placement.swapped_bytes)
        placement = placement if placement.paged_bytes >= enough else None
    shown = placement or place(need, Budget(least).memory(used))
    reads_images = model.config.reads_images
    terms = _terms(model, chat, shown, need)
    memory = MemoryPlan.of("ram", terms, budget.allowed_bytes, reads_images=reads_images)
    slots, plan = memory.in_decode(_SLOTS), model.paging_plan
    share = 1.0 if plan is None or slots is None else min(1.0, slots / plan.bytes_of("text"))
    return CpuPlan(memory, placement, least, fit.resident_total(need, used), slots, share)


def process_bytes(chat: ChatPlan) -> int:
    """The process with the images of the chat, before weights are read; `load` counts no less than this."""
    return PROCESS.best + chat.opened_bytes


def _need(model: ModelSize, chat: ChatPlan, budget: Budget) -> MemoryNeed:
    weights, plan = model.weights(chat.item_bytes), model.paging_plan
    need = MemoryNeed.of_weights(model.config.text, weights, plan)
    return chat_need(need, model.config, model.processor, chat, budget.limit_bytes)


def _terms(model: ModelSize, chat: ChatPlan, placement: Placement, need: MemoryNeed) -> tuple[Term, ...]:
    weights, is_resident = model.weights(chat.item_bytes), placement.paged_bytes is None
    opened = Amount.exactly(chat.opened_bytes)
    terms = [
        Term.always("Python and torch", "measured", PROCESS),
        # An image that did not come from a file is kept.
        Term("opened images", "computed", {"load": opened, "vision": Amount(0, 0, opened.best)}),
        Term("modules and threads", "measured", dict.fromkeys(_AFTER_LOAD, _LATE)),
    ]
    for name in [part.name for part in model.parts if is_resident or not part.is_routed]:
        num_bytes = Amount.exactly(weights.parts.get(name, 0))
        if not placement.swapped_bytes or name not in IMAGE_PARTS:
            terms.append(Term.always(name, "exact", num_bytes))
        elif chat.images:
            terms.append(Term(name, "exact", {"vision": num_bytes}))
    terms.append(Term.exact(ADAPTERS_PART, weights.parts.get(ADAPTERS_PART, 0)))
    # Packed weights besides paged experts come in whole huge pages; where all are resident they are mapped.
    has_end = model.config.quantization is not None and not is_resident
    ends = Amount(0, HUGE_PAGE // 2, HUGE_PAGE) if has_end else NOTHING
    terms.append(Term.always("ends of huge pages", "computed", ends))
    if placement.paged_bytes is not None:
        chunk = placement.chunk_tokens
        beside: dict[Phase, int] = {
            "vision": need.vision_bytes(chunk, placement.swapped_bytes),
            "prefill": need.prefill_bytes(chunk),
            "decode": need.decode_bytes(chunk),
        }
        terms.append(_slots(model, placement.paged_bytes, beside))
    terms += _working_terms(model, chat, placement, need)
    return tuple(term for term in terms if term.most.best)


def _working_terms(model: ModelSize, chat: ChatPlan, placement: Placement, need: MemoryNeed) -> list[Term]:
    """What a chat takes besides weights."""
    text, vision, images = model.config.text, model.config.tower, chat.images
    num_tokens = chat.context_size
    chunk = min(placement.chunk_tokens, num_tokens)
    one_cache = chat.kv_size(text).touched_bytes(num_tokens)
    cache = Amount.exactly(chat.parallel * one_cache)
    patch_values = 0 if vision is None else vision.patch_values
    pixels = Amount.exactly(sum(chat.patch_counts) * patch_values * FLOAT_BYTES)
    encoding = encoding_bytes(vision, chat.patch_counts, chat.item_bytes)
    tower = Amount(encoding // 2, int(_ENCODING_SHARE * encoding), encoding)
    features = Amount.exactly(chat.image_tokens * text.hidden_size * FLOAT_BYTES)
    most_kept = feature_bytes(placement.spare_bytes)
    kept = min(features.best, most_kept)
    at_work = Amount.about(int(_CHUNK_SHARE * working_bytes(text, chunk)), 0.8, 1.2)
    mixed = mixed_chunk_bytes(text, chunk, chat.item_bytes) if images else 0
    programs = Amount.about(compiled_bytes(model.config, chat, chunk), 0.0, 1.5)
    attention = Amount.about(need.attention_bytes(placement.chunk_tokens), 0.5, 1.2)
    # High end: an image that comes when the cache of its chat is full, too.
    early = Amount(0, (chat.parallel - 1) * one_cache, cache.best)
    return [
        Term("KV cache", "computed", {"vision": early, "prefill": cache, "decode": cache}),
        Term("patches of images", "exact", dict.fromkeys(_AFTER_LOAD, pixels)),
        Term("vision tower at work", "measured", {"vision": tower}),
        Term("features of images", "exact", {"vision": features, "prefill": features}),
        # For chats to come; high end: other images, which the process has seen before.
        Term("features kept", "computed", dict.fromkeys(_AFTER_LOAD, Amount(0, kept, most_kept))),
        Term("a chunk at work", "measured", {"prefill": at_work}),
        Term("a chunk with images", "computed", {"prefill": Amount(0, mixed, mixed)}),
        Term("compiled products", "measured", {"prefill": programs}),
        Term("attention at work", "measured", {"prefill": attention}),
    ]


def _slots(model: ModelSize, shared_bytes: int, beside: Mapping[Phase, int]) -> Term:
    """Slots of paged experts: what everything else leaves of the shared memory."""
    plan = model.paging_plan
    assert plan is not None
    frame = plan.frame_bytes
    frames = min(shared_bytes, plan.most_bytes) // frame
    phases = {
        phase: Amount.about(min(frames, max(0, shared_bytes - taken) // frame) * frame, 0.95, 1.0)
        for phase, taken in beside.items()
    }
    return Term(_SLOTS, "computed", phases)
