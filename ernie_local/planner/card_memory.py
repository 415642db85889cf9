"""What a conversation would take of a graphics card and of RAM beside it: the terms, and where experts go.

Nothing of this has run on a card yet, so these are predictions: weights are exact, what the kernels of a
card take is assumed. Knows nothing of speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, attention_bytes, encoding_bytes
from ernie_local.planner.conversation import Conversation
from ernie_local.planner.cpu_memory import PROCESS, Budget
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.placement import working_bytes
from ernie_local.planner.terms import PHASES, Amount, MemoryPlan, Phase, Term
from ernie_local.sizes import MIB

Tier = Literal["resident", "paged", "needs ram", "does not fit"]
ITEM_BYTES = 2  # of a number on a card: bfloat16 or float16
_CONTEXT = Amount(250 * MIB, 450 * MIB, 800 * MIB)  # of CUDA, its libraries and kernels
_HOST = Amount(300 * MIB, 700 * MIB, 2000 * MIB)  # what CUDA's libraries take of RAM
_STAGED_PAGES = 2  # one on its way while another is computed with
_VISION_PARTS = ("vision tower", "resampler")
_EXPERT_PARTS = ("text experts", "vision experts")
_COMPUTING: tuple[Phase, ...] = ("vision", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class CardPlan:
    """slots_bytes: memory of the card for experts in decode, of which all text experts take `text_bytes`.

    host_bytes: RAM in which all experts lie; least_bytes: of a card, with which experts can be paged at all.
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
        """Share of the text experts that have room on the card in decode."""
        return min(1.0, self.slots_bytes / self.text_bytes) if self.text_bytes else 1.0


def plan_card(model: ModelSize, conversation: Conversation, vram_bytes: int, ram: Budget) -> CardPlan:
    """Everything on the card if it fits, else text experts in slots and all experts in RAM.

    vram_bytes: of the card's memory that may be taken.
    """
    weights, plan = model.weights(ITEM_BYTES), model.paging_plan
    fixed = _fixed_terms(model, conversation)
    experts = [
        Term.always(part, "exact", Amount.exactly(weights.parts[part]))
        for part in _EXPERT_PARTS
        if weights.parts.get(part)
    ]
    tower = [Term.always(part, "exact", Amount.exactly(weights.parts[part])) for part in _VISION_PARTS]
    whole = MemoryPlan("vram", (*fixed, *tower, *experts), vram_bytes)
    text_bytes = weights.parts.get("text experts", 0)
    if plan is None or whole.fits:
        tier: Tier = "resident" if whole.fits else "does not fit"
        host = MemoryPlan("ram", _host_terms(0), ram.allowed_bytes)
        return CardPlan(tier, whole, host, text_bytes, text_bytes, 0, whole.peak.best)
    # The tower is there for pictures alone.
    visiting = [Term(term.name, term.provenance, {"vision": term.phases["vision"]}) for term in tower]
    staging = Term.always("staging", "assumed", Amount.exactly(_STAGED_PAGES * plan.frame_bytes))
    beside = MemoryPlan("vram", (*fixed, *visiting, staging), vram_bytes)
    least = beside.peak.best + plan.least_bytes
    left = {phase: max(0, vram_bytes - beside.phase(phase).best) for phase in PHASES}
    slots = {
        phase: Amount.exactly(min(left[phase], weights.experts) // plan.frame_bytes * plan.frame_bytes)
        for phase in PHASES
    }
    vram = MemoryPlan("vram", (*beside.terms, Term("slots of experts", "computed", slots)), vram_bytes)
    host = MemoryPlan("ram", _host_terms(weights.experts), ram.allowed_bytes)
    tier = "does not fit" if least > vram_bytes else "paged" if host.fits else "needs ram"
    return CardPlan(tier, vram, host, slots["decode"].best, text_bytes, host.peak.best, least)


def session_terms(model: ModelSize, session: Conversation, num_cards: int) -> list[Term]:
    """What a server holds beside the caches of its sessions, over all cards: every weight once, and on each
    card a context and room to compute in."""
    weights = model.weights(ITEM_BYTES)
    shared = [term for term in _fixed_terms(model, session) if term.name != "KV cache"]
    terms = [
        Term(
            term.name,
            term.provenance,
            {phase: _times(amount, num_cards) for phase, amount in term.phases.items()},
        )
        if term.provenance != "exact"
        else term
        for term in shared
    ]
    for part in (*_VISION_PARTS, *_EXPERT_PARTS):
        num_bytes = weights.parts.get(part, 0)
        terms += [Term.always(part, "exact", Amount.exactly(num_bytes))] if num_bytes else []
    return terms


def _times(amount: Amount, count: int) -> Amount:
    return Amount(amount.low * count, amount.best * count, amount.high * count)


def _fixed_terms(model: ModelSize, conversation: Conversation) -> list[Term]:
    """All but experts and tower."""
    config, text = model.config, model.config.text
    weights = model.weights(ITEM_BYTES)
    terms = [Term.always("CUDA context and kernels", "assumed", _CONTEXT)]
    for part, num_bytes in weights.parts.items():
        if part not in (*_VISION_PARTS, *_EXPERT_PARTS):
            terms.append(Term.always(part, "exact", Amount.exactly(num_bytes)))
    cache = Amount.exactly(conversation.kv_size(text).num_bytes)
    chunk = min(DEFAULT_CHUNK_TOKENS, conversation.context_size)
    # Half of what float32 on the CPU takes; what a card's attention keeps is not known yet.
    working = (working_bytes(text, chunk) + attention_bytes(text, chunk, conversation.context_size)) // 2
    encoding = encoding_bytes(config.vision, [picture.patches for picture in conversation.pictures]) // 2
    terms.append(Term("KV cache", "computed", dict.fromkeys(_COMPUTING, cache)))
    terms.append(Term("vision tower at work", "assumed", {"vision": Amount.about(encoding, 0.4, 1.5)}))
    terms.append(Term("a chunk at work", "assumed", {"prefill": Amount.about(working, 0.5, 2.0)}))
    return [term for term in terms if term.most.best]


def _host_terms(expert_bytes: int) -> tuple[Term, ...]:
    terms = [
        Term.always("Python and torch", "measured", PROCESS),
        Term.always("CUDA's libraries", "assumed", _HOST),
    ]
    if expert_bytes:
        terms.append(Term.always("experts in RAM", "exact", Amount.exactly(expert_bytes)))
    return tuple(terms)
