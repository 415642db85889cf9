"""What a conversation takes of RAM where the CPU computes: the terms, and where experts go.

The placement is the one that `load` makes (placement.py). Knows nothing of speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import (
    attention_bytes,
    encoding_bytes,
    image_prompt_bytes,
    mixed_chunk_bytes,
)
from ernie_local.planner.conversation import Conversation
from ernie_local.planner.images import largest_prompt_bytes
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.placement import (
    DEFAULT_RESERVE,
    MemoryNeed,
    Placement,
    expected_tokens,
    least_limit,
    place_in_ram,
    resident_limit,
    working_bytes,
)
from ernie_local.planner.terms import Amount, MemoryPlan, Phase, Term
from ernie_local.sizes import HUGE_PAGE, KIB, MIB

# Python with torch and this package when loading begins, and what comes later: modules, threads' stacks, an
# allocator's leftovers. Measured with torch 2.13 for the CPU (docs/performance.md).
PROCESS = Amount(215 * MIB, 233 * MIB, 290 * MIB)
_LATE = Amount(5 * MIB, 26 * MIB, 100 * MIB)
_CHUNK_SHARE = 1.12  # of what it keeps free for a chunk: freed memory of one layer is no hole for the next
_ENCODING_SHARE = 0.92  # of what the runtime keeps free for the tower, so much is really taken
SLOTS = "slots of paged experts"
# Products of plain bfloat16 experts: on a processor with instructions for them torch keeps a compiled program
# for each number of tokens that an expert got, up to so many.
_MOST_PROGRAMS, _PROGRAM_BYTES = 1024, 500 * KIB
_FLOAT_BYTES = 4
_AFTER_LOAD: tuple[Phase, ...] = ("vision", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Budget:
    """limit_bytes: of the whole process; None for what is free, less the reserve. free_bytes: that are free
    before the process begins; None where the machine is another one and has what the limit says."""

    limit_bytes: int | None
    free_bytes: int | None = None
    reserve_bytes: int = DEFAULT_RESERVE

    @property
    def allowed_bytes(self) -> int | None:
        """What the process may take; None where nothing is known."""
        if self.limit_bytes is not None:
            return self.limit_bytes
        return None if self.free_bytes is None else max(0, self.free_bytes - self.reserve_bytes)


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """placement: as `load` decides it, None where it refuses. least_bytes: the smallest limit it takes."""

    memory: MemoryPlan
    placement: Placement | None
    least_bytes: int
    resident_bytes: int  # the smallest limit with which every expert is in memory

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return self.placement is not None

    def resident_share(self, model: ModelSize) -> float:
        """Share of the text experts that have room in memory in decode."""
        plan, slots = model.paging_plan, self.slots_bytes
        return 1.0 if plan is None or slots is None else min(1.0, slots / plan.bytes_of("text"))

    @property
    def slots_bytes(self) -> int | None:
        """Memory for experts in decode; None where all are resident."""
        slots = next((term for term in self.memory.terms if term.name == SLOTS), None)
        return None if slots is None else slots.phases["decode"].best


def plan_cpu(model: ModelSize, conversation: Conversation, budget: Budget) -> CpuPlan:
    """The terms of a conversation that fills its context, with experts where `load` puts them.

    Where it does not fit, the terms are those of the smallest way to run it.
    """
    need, text = _need(model, conversation, budget), model.config.text
    free = _free_beside(budget)
    placement: Placement | None
    try:
        placement = place_in_ram(
            need, text, budget.limit_bytes, budget.reserve_bytes, process=PROCESS.best, free=free
        )
    except DoesNotFit:
        placement = None
    if placement is not None and _lacking_bytes(model, conversation, placement) > 0:
        placement = None
    least, smallest = _smallest(model, conversation, need)
    terms = _terms(model, conversation, placement or smallest)
    memory = MemoryPlan("ram", terms, budget.allowed_bytes)
    return CpuPlan(memory, placement, least, resident_limit(need, text, PROCESS.best))


def _smallest(model: ModelSize, conversation: Conversation, need: MemoryNeed) -> tuple[int, Placement]:
    """The smallest limit that the conversation runs in with all its images, and what is placed there."""
    least = least_limit(need, model.config.text, PROCESS.best)
    while True:
        placement = place_in_ram(need, model.config.text, least, process=PROCESS.best, free=least)
        lacking = _lacking_bytes(model, conversation, placement)
        if lacking <= 0:
            return least, placement
        least += lacking  # which may make chunks larger, and these want more


def _lacking_bytes(model: ModelSize, conversation: Conversation, placement: Placement) -> int:
    """What the experts of one token would lack when others want most of the memory that they share.

    The conversation would come to an end there (experts/room.py)."""
    if placement.paged_bytes is None:
        return 0
    plan = model.paging_plan
    assert plan is not None
    most = max(_beside_experts(model, conversation, placement).values())
    return plan.least_bytes + most - placement.paged_bytes


def _beside_experts(model: ModelSize, conversation: Conversation, placement: Placement) -> dict[Phase, int]:
    """What the runtime keeps for others of the memory that paged experts share, as engine.py asks for it."""
    text, num_tokens, images = model.config.text, conversation.context_size, conversation.images
    chunk = min(placement.chunk_tokens, num_tokens)
    held = encoding = 0
    if images:
        patches = [image.patches for image in images]
        tokens = sum(image.tokens for image in images)
        held = image_prompt_bytes(model.config, sum(patches), tokens, chunk, conversation.item_bytes)
        encoding = encoding_bytes(model.config.vision, patches)
    talk = conversation.kv_size(text).touched_bytes(num_tokens) + attention_bytes(text, chunk, num_tokens)
    # What a prompt needed stays with the cache.
    return {"vision": encoding + held, "prefill": talk + held, "decode": talk}


def _free_beside(budget: Budget) -> int:
    """Free bytes when the process is there."""
    if budget.free_bytes is not None:
        return max(0, budget.free_bytes - PROCESS.best)
    return budget.limit_bytes or (1 << 60)


def _need(model: ModelSize, conversation: Conversation, budget: Budget) -> MemoryNeed:
    weights, plan = model.weights(conversation.item_bytes), model.paging_plan
    num_tokens = expected_tokens(budget.limit_bytes, conversation.context_size)
    return MemoryNeed(
        weights.dense,
        weights.experts,
        conversation.kv_size(model.config.text).num_bytes,
        None if plan is None else plan.least_bytes,
        largest_prompt_bytes(model.config, model.processor, num_tokens, conversation.item_bytes),
        conversation.context_size,
    )


def _terms(model: ModelSize, conversation: Conversation, placement: Placement) -> tuple[Term, ...]:
    weights = model.weights(conversation.item_bytes)
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
    working = _working_terms(conversation, placement, model)
    if placement.paged_bytes is not None:
        beside = _beside_experts(model, conversation, placement)
        terms.append(_slots(model, placement.paged_bytes, beside))
    return tuple(term for term in (*terms, *working) if term.most.best)


def _huge_page_ends(model: ModelSize, *, resident: bool) -> Amount:
    """Packed memory begins and ends with whole huge pages: one piece for each bank, one for the rest."""
    config = model.config
    if config.quantization is None:
        return Amount.exactly(0)
    pieces = 1 + (len(config.quantization.experts) if resident else 0)
    return Amount(0, pieces * HUGE_PAGE // 2, pieces * HUGE_PAGE)


def _working_terms(conversation: Conversation, placement: Placement, model: ModelSize) -> list[Term]:
    """What a conversation takes beside weights."""
    config, text = model.config, model.config.text
    num_tokens = conversation.context_size
    cache = Amount.exactly(conversation.kv_size(text).touched_bytes(num_tokens))
    chunk = min(placement.chunk_tokens, num_tokens)
    images = conversation.images
    pixels = Amount.exactly(sum(image.pixel_bytes(config) for image in images))
    features = conversation.image_tokens * text.hidden_size * _FLOAT_BYTES
    encoding = encoding_bytes(config.vision, [image.patches for image in images])
    likely = int(_ENCODING_SHARE * encoding)
    mixed = mixed_chunk_bytes(text, chunk, conversation.item_bytes) if images else 0
    programs = _num_programs(model, conversation, chunk) * _PROGRAM_BYTES
    # A later image would find the cache full: that is the high end.
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


def _num_programs(model: ModelSize, conversation: Conversation, chunk_tokens: int) -> int:
    """Two products for each expert that a chunk visits; text alone visits only the banks that serve it."""
    if model.is_packed or conversation.dtype != "bfloat16":
        return 0
    text = model.config.text
    num_experts = sum(bank.num_experts for bank in text.banks if conversation.images or "text" in bank.serves)
    num_chunks = -(-conversation.context_size // chunk_tokens)
    return min(_MOST_PROGRAMS, 2 * num_chunks * sum(text.moe_layers) * num_experts)


def _slots(model: ModelSize, shared_bytes: int, beside: Mapping[Phase, int]) -> Term:
    """Slots of paged experts: what others do not take of the memory that they share."""
    plan = model.paging_plan
    assert plan is not None
    frames = min(shared_bytes, plan.most_bytes) // plan.frame_bytes
    phases: dict[Phase, Amount] = {}
    for phase, num_bytes in beside.items():
        taken = min(frames, max(0, shared_bytes - num_bytes) // plan.frame_bytes) * plan.frame_bytes
        phases[phase] = Amount.about(taken, 0.95, 1.0)
    return Term(SLOTS, "computed", phases)
