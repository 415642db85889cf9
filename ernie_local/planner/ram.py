"""Predicts what a chat takes of RAM where the CPU computes, term by term, as `load` places it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import (
    FLOAT_BYTES,
    attention_bytes,
    encoding_bytes,
    image_prompt_bytes,
    mixed_chunk_bytes,
)
from ernie_local.planner.conversation import ChatPlan, largest_prompt_bytes, pixel_bytes
from ernie_local.planner.fit import (
    DEFAULT_RESERVE,
    AvailableMemory,
    Placement,
    expected_tokens,
    least_total,
    place,
    resident_total,
)
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import MemoryNeed, working_bytes
from ernie_local.planner.terms import Amount, MemoryPlan, Phase, Term
from ernie_local.sizes import HUGE_PAGE, KIB, MIB

# Python with torch and this package when loading begins, and what comes later: modules, stacks of threads,
# leftovers of an allocator. Measured with torch 2.13 for the CPU (docs/performance.md).
PROCESS = Amount(215 * MIB, 233 * MIB, 290 * MIB)
_LATE = Amount(5 * MIB, 26 * MIB, 100 * MIB)
# Of the bytes kept free for a chunk: memory freed by one layer does not always suit the next.
_CHUNK_SHARE = 1.12
_ENCODING_SHARE = 0.92  # of the bytes kept free for the tower, what it really takes
SLOTS = "slots of paged experts"
# Products of plain bfloat16 experts: on a processor with instructions for them torch keeps a compiled program
# for each number of tokens that an expert got, up to this many.
_MOST_PROGRAMS, _PROGRAM_BYTES = 1024, 500 * KIB
_AFTER_LOAD: tuple[Phase, ...] = ("vision", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Budget:
    """RAM that the process may take, in bytes.

    limit_bytes: of the whole process; None for what is free, less the reserve. free_bytes: free before the
    process starts; None on another machine, which has what the limit says.
    """

    limit_bytes: int | None
    free_bytes: int | None = None
    reserve_bytes: int = DEFAULT_RESERVE

    @property
    def allowed_bytes(self) -> int | None:
        """What the process may take; None where nothing is known."""
        if self.limit_bytes is not None:
            return self.limit_bytes
        return None if self.free_bytes is None else max(0, self.free_bytes - self.reserve_bytes)

    def memory(self) -> AvailableMemory:
        """As `load` finds it in a process that has just started."""
        if self.free_bytes is not None:
            free = max(0, self.free_bytes - PROCESS.best)
        else:
            free = self.limit_bytes or (1 << 60)
        return AvailableMemory.of_ram(self.limit_bytes, self.reserve_bytes, used=PROCESS.best, free=free)


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """placement: as `load` decides it, None where it refuses. least_bytes: the smallest limit it accepts.

    resident_bytes: the smallest limit with which every expert is in memory.
    """

    memory: MemoryPlan
    placement: Placement | None
    least_bytes: int
    resident_bytes: int

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return self.placement is not None

    def resident_share(self, model: ModelSize) -> float:
        """Share of the text experts that are in memory in decode."""
        plan, slots = model.paging_plan, self.slots_bytes
        return 1.0 if plan is None or slots is None else min(1.0, slots / plan.bytes_of("text"))

    @property
    def slots_bytes(self) -> int | None:
        """AvailableMemory for experts in decode; None where all are resident."""
        slots = next((term for term in self.memory.terms if term.name == SLOTS), None)
        return None if slots is None else slots.phases["decode"].best


def plan_cpu(model: ModelSize, chat: ChatPlan, budget: Budget) -> CpuPlan:
    """The terms of a chat that fills its context, with experts where `load` puts them.

    Where it does not fit, the terms are those of the smallest way to run it.
    """
    need = _need(model, chat, budget)
    placement: Placement | None
    try:
        placement = place(need, budget.memory())
    except DoesNotFit:
        placement = None
    if placement is not None and _lacking_bytes(model, chat, placement) > 0:
        placement = None
    least, smallest = _smallest(model, chat, need)
    terms = _terms(model, chat, placement or smallest)
    memory = MemoryPlan("ram", terms, budget.allowed_bytes)
    return CpuPlan(memory, placement, least, resident_total(need, PROCESS.best))


def _smallest(model: ModelSize, chat: ChatPlan, need: MemoryNeed) -> tuple[int, Placement]:
    """The smallest limit that the chat runs in with all its images, and where experts go then."""
    least = least_total(need, PROCESS.best)
    while True:
        placement = place(need, Budget(least).memory())
        lacking = _lacking_bytes(model, chat, placement)
        if lacking <= 0:
            return least, placement
        least += lacking  # chunks may grow with it, and take more in turn


def _lacking_bytes(model: ModelSize, chat: ChatPlan, placement: Placement) -> int:
    """What the experts of one token lack when everything else takes the most of the memory they share.

    The chat would end there (experts/room.py).
    """
    if placement.paged_bytes is None:
        return 0
    plan = model.paging_plan
    assert plan is not None
    return plan.least_bytes + max(_beside_experts(model, chat, placement).values()) - placement.paged_bytes


def _beside_experts(model: ModelSize, chat: ChatPlan, placement: Placement) -> dict[Phase, int]:
    """What the engine takes of the memory that paged experts share, in each phase (engine.py)."""
    text, num_tokens, images = model.config.text, chat.context_size, chat.images
    chunk = min(placement.chunk_tokens, num_tokens)
    held = encoding = 0
    if images:
        patches = [image.patches for image in images]
        tokens = sum(image.tokens for image in images)
        held = image_prompt_bytes(model.config, sum(patches), tokens, chunk, chat.item_bytes)
        encoding = encoding_bytes(model.config.vision, patches)
    talk = chat.kv_size(text).touched_bytes(num_tokens) + attention_bytes(text, chunk, num_tokens)
    # What a prompt needed stays with the cache.
    return {"vision": encoding + held, "prefill": talk + held, "decode": talk}


def _need(model: ModelSize, chat: ChatPlan, budget: Budget) -> MemoryNeed:
    weights, plan = model.weights(chat.item_bytes), model.paging_plan
    num_tokens = expected_tokens(budget.limit_bytes, chat.context_size)
    return replace(
        MemoryNeed.of_weights(model.config.text, weights.dense, weights.experts, plan),
        cache_bytes=chat.kv_size(model.config.text).num_bytes,
        context_size=chat.context_size,
        prompt_bytes=largest_prompt_bytes(model.config, model.processor, num_tokens, chat.item_bytes),
    )


def _terms(model: ModelSize, chat: ChatPlan, placement: Placement) -> tuple[Term, ...]:
    weights = model.weights(chat.item_bytes)
    terms = [
        Term.always("Python and torch", "measured", PROCESS),
        Term("modules and threads", "measured", dict.fromkeys(_AFTER_LOAD, _LATE)),
    ]
    resident = placement.paged_bytes is None
    for part in model.parts:
        num_bytes = weights.parts.get(part.name, 0)
        if num_bytes and (resident or not part.is_routed):
            terms.append(Term.always(part.name, "exact", Amount.exactly(num_bytes)))
    terms.append(Term.always("ends of huge pages", "computed", _huge_page_ends(model, resident=resident)))
    working = _working_terms(chat, placement, model)
    if placement.paged_bytes is not None:
        beside = _beside_experts(model, chat, placement)
        terms.append(_slots(model, placement.paged_bytes, beside))
    return tuple(term for term in (*terms, *working) if term.most.best)


def _huge_page_ends(model: ModelSize, *, resident: bool) -> Amount:
    """Packed memory comes in whole huge pages: one piece for each layer and bank, one for the rest."""
    config = model.config
    if config.quantization is None:
        return Amount.exactly(0)
    pieces = 1 + (len(config.quantization.experts) if resident else 0)
    return Amount(0, pieces * HUGE_PAGE // 2, pieces * HUGE_PAGE)


def _working_terms(chat: ChatPlan, placement: Placement, model: ModelSize) -> list[Term]:
    """What a chat takes besides weights."""
    config, text = model.config, model.config.text
    num_tokens = chat.context_size
    cache = Amount.exactly(chat.kv_size(text).touched_bytes(num_tokens))
    chunk = min(placement.chunk_tokens, num_tokens)
    images = chat.images
    pixels = Amount.exactly(sum(pixel_bytes(image, config) for image in images))
    features = chat.image_tokens * text.hidden_size * FLOAT_BYTES
    encoding = encoding_bytes(config.vision, [image.patches for image in images])
    likely = int(_ENCODING_SHARE * encoding)
    mixed = mixed_chunk_bytes(text, chunk, chat.item_bytes) if images else 0
    programs = _num_programs(model, chat, chunk) * _PROGRAM_BYTES
    # High end: an image that comes when the cache is full.
    early = Amount(0, 0, cache.best)
    return [
        Term("KV cache", "computed", {"vision": early, "prefill": cache, "decode": cache}),
        Term("pixels of images", "exact", dict.fromkeys(_AFTER_LOAD, pixels)),
        Term(
            "vision tower at work",
            "measured",
            {"vision": Amount(encoding // 2, likely, encoding)},
        ),
        Term("features of images", "exact", dict.fromkeys(("vision", "prefill"), Amount.exactly(features))),
        Term(
            "a chunk at work",
            "measured",
            {"prefill": Amount.about(int(_CHUNK_SHARE * working_bytes(text, chunk)), 0.8, 1.2)},
        ),
        Term("a chunk with images", "computed", {"prefill": Amount(0, mixed, mixed)}),
        Term("compiled products", "measured", {"prefill": Amount.about(programs, 0.0, 1.5)}),
        Term(
            "attention at work",
            "measured",
            {"prefill": Amount.about(attention_bytes(text, chunk, num_tokens), 0.5, 1.2)},
        ),
    ]


def _num_programs(model: ModelSize, chat: ChatPlan, chunk_tokens: int) -> int:
    """Two products for each expert that a chunk visits; text alone visits only the banks that serve it."""
    if model.is_packed or chat.dtype != "bfloat16":
        return 0
    text = model.config.text
    num_experts = sum(bank.num_experts for bank in text.banks if chat.images or "text" in bank.serves)
    num_chunks = -(-chat.context_size // chunk_tokens)
    return min(_MOST_PROGRAMS, 2 * num_chunks * sum(text.moe_layers) * num_experts)


def _slots(model: ModelSize, shared_bytes: int, beside: Mapping[Phase, int]) -> Term:
    """Slots of paged experts: what everything else leaves of the shared memory."""
    plan = model.paging_plan
    assert plan is not None
    frames = min(shared_bytes, plan.most_bytes) // plan.frame_bytes
    phases: dict[Phase, Amount] = {}
    for phase, num_bytes in beside.items():
        taken = min(frames, max(0, shared_bytes - num_bytes) // plan.frame_bytes) * plan.frame_bytes
        phases[phase] = Amount.about(taken, 0.95, 1.0)
    return Term(SLOTS, "computed", phases)
