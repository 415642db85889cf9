"""Adds up what takes memory, term by term and phase by phase, and finds the peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["load", "vision", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("load", "vision", "prefill", "decode")
# exact: from headers or sizes; computed: by the rule that the runtime itself keeps; measured: a rule or a
# number from measurements (docs/performance.md); assumed: not measured.
Provenance = Literal["exact", "computed", "measured", "assumed"]


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes: the likely number between a low and a high one."""

    low: int
    best: int
    high: int

    @staticmethod
    def exactly(num_bytes: int) -> Amount:
        """A number that is known exactly."""
        return Amount(num_bytes, num_bytes, num_bytes)

    @staticmethod
    def about(num_bytes: int, low: float, high: float) -> Amount:
        """A number with its band as factors."""
        return Amount(int(num_bytes * low), num_bytes, int(num_bytes * high))

    def __add__(self, other: Amount) -> Amount:
        """Sums of low with low and high with high."""
        return Amount(self.low + other.low, self.best + other.best, self.high + other.high)


NOTHING = Amount(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that takes memory. phases: what it takes in each phase that has it."""

    name: str
    provenance: Provenance
    phases: Mapping[Phase, Amount]

    @staticmethod
    def always(name: str, provenance: Provenance, amount: Amount) -> Term:
        """In all phases the same."""
        return Term(name, provenance, dict.fromkeys(PHASES, amount))

    @staticmethod
    def exact(name: str, num_bytes: int) -> Term:
        """Known exactly, and in all phases the same."""
        return Term.always(name, "exact", Amount.exactly(num_bytes))

    @property
    def most(self) -> Amount:
        """In the phase in which it takes most."""
        return max(self.phases.values(), key=lambda amount: amount.best, default=NOTHING)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """All terms of one memory, RAM or a GPU's. limit_bytes: what may be taken of it; None if unknown.

    left_bytes: of the limit, what is left to others. phases: those that the model has.
    """

    place: Literal["ram", "vram"]
    terms: tuple[Term, ...]
    limit_bytes: int | None
    left_bytes: int = 0
    phases: tuple[Phase, ...] = PHASES

    @classmethod
    def of(
        cls,
        place: Literal["ram", "vram"],
        terms: Iterable[Term],
        limit_bytes: int | None,
        left_bytes: int = 0,
        *,
        reads_images: bool,
    ) -> MemoryPlan:
        """Of a model; one that reads no images has no phase in which they are encoded."""
        phases = tuple(phase for phase in PHASES if reads_images or phase != "vision")
        own = (
            replace(term, phases={phase: term.phases[phase] for phase in phases if phase in term.phases})
            for term in terms
        )
        kept = tuple(term for term in own if term.phases)
        return cls(place, kept, limit_bytes, left_bytes, phases)

    def phase(self, phase: Phase) -> Amount:
        """The sum of all terms in a phase."""
        return sum((term.phases.get(phase, NOTHING) for term in self.terms), NOTHING)

    def in_decode(self, name: str) -> int | None:
        """What the term of this name takes in decode; None without it."""
        return next((term.phases["decode"].best for term in self.terms if term.name == name), None)

    @property
    def peak_phase(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: self.phase(phase).best)

    @property
    def peak(self) -> Amount:
        """The most at any time: the largest phase, not the sum of phases."""
        return self.phase(self.peak_phase)

    @property
    def fits(self) -> bool:
        """Whether the likely peak is within the limit."""
        return self.limit_bytes is None or self.peak.best <= self.limit_bytes
