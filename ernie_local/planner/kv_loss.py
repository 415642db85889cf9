"""Says what an int8 KV cache costs in quality: measured on nano (docs/performance.md, "An int8 KV cache")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVLoss:
    """Against a float32 cache. divergence: mean KL in nats where an answer is written; most_divergence: the
    upper end of its 95 % interval. exact, exact_before: of `questions`, answers that are right to the letter,
    with it and without.
    """

    divergence: float
    most_divergence: float
    questions: int
    exact_before: int
    exact: int

    @property
    def line(self) -> str:
        """For people who are told that the cache is in int8."""
        return (
            f"int8 KV cache: on nano its KL is {self.divergence:.5f} (at most {self.most_divergence:.5f}), "
            f"{self.exact} of {self.questions} answers are exact, {self.exact_before} with float32"
        )


INT8_KV_LOSS = KVLoss(divergence=0.00007, most_divergence=0.00012, questions=200, exact_before=176, exact=176)
