"""Chooses the next token from its logits: the likeliest, or one drawn after the usual filters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ernie_local.config.keys import Keys
from ernie_local.errors import ErnieLocalError, UsageError, parameter
from ernie_local.strict_json import show

_LARGEST_SEED = 2**63 - 1
# Beyond these the quotient of two float32 is no number; what is drawn is the same.
_COLDEST, _HOTTEST = 1e-37, 1e37
# What a generation_config.json with do_sample leaves out, as transformers fills it in. Of the other settings
# its defaults are those of SamplingOptions.
_DRAWING: dict[str, Any] = {"temperature": 1.0, "top_k": 50}


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are chosen; the defaults choose the likeliest. UsageError for a value without a meaning.

    temperature: 0 is greedy; the filters below then change nothing.
    top_p: keep the likeliest tokens that together reach this probability (0 < top_p <= 1; 1 keeps all).
    top_k: keep this many of the likeliest tokens (0 keeps all).
    min_p: keep tokens at least this likely, measured against the likeliest (0 keeps all).
    repetition_penalty: above 1 makes tokens that were there before less likely (1 does nothing).
    seed: the same seed, prompt and options give the same answer; None draws a new seed for each answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        # Written so that NaN fails each of them. Name, whether it is usable, what is, and an example.
        for name, is_usable, expected, example in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more", 0.7),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1", 0.9),
            ("top_k", self.top_k >= 0, "0 (off) or more", 40),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1", 0.05),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 (1 is off)", 1.1),
            ("seed", 0 <= (self.seed or 0) <= _LARGEST_SEED, f"a whole number up to {_LARGEST_SEED}", 1),
        ):
            if not is_usable:
                raise UsageError(
                    f"{parameter(name, getattr(self, name))} cannot be used",
                    f"it must be {expected}",
                    parameter(name, example),
                )


def model_sampling(generation_config: Mapping[str, object]) -> SamplingOptions:
    """How a model's own generation_config.json samples, as `generate` of transformers reads it.

    Greedy unless do_sample is true, whatever the temperature. ModelUnusable, naming the key, for a value
    without a meaning.
    """
    keys = Keys(generation_config, "generation_config.json")
    found: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "top_k"):
        if not keys.has(name):
            continue
        found[name] = keys.integer(name, low=0) if name == "top_k" else keys.number(name)
        try:
            SamplingOptions(**{name: found[name]})
        except UsageError as error:
            raise keys.refuse(name, f"is {show(keys.value(name))}, {error.why}") from error
    if keys.boolean("do_sample", False):
        return SamplingOptions(**{**_DRAWING, **found})
    return SamplingOptions(**{**found, "temperature": 0.0})


def overflow_hint(dtype: torch.dtype) -> str:
    """What to try where a model that computes in `dtype` gave no numbers."""
    wider = "" if dtype == torch.float32 else f"{parameter('dtype', 'float32')}, or "
    return f"{wider}`ernie-local verify`, which names damaged and too large weights; else another checkpoint"


class Sampler:
    """Chooses the tokens of one answer. `seed` is the one in use, also where it was drawn."""

    def __init__(self, options: SamplingOptions, dtype: torch.dtype = torch.float32) -> None:
        """dtype: in which the logits are computed."""
        self._options = options
        self._dtype = dtype
        self._generator = torch.Generator(device="cpu")
        self.seed = self._generator.seed() & _LARGEST_SEED if options.seed is None else options.seed
        self._generator.manual_seed(self.seed)

    def pick(self, logits: torch.Tensor, seen_ids: Collection[int] = ()) -> int:
        """The next token id, from logits (vocab,) on any device; `seen_ids` are those that were there before.

        ErnieLocalError where the logits are not numbers.
        """
        scores = self._penalized(logits, seen_ids)
        best = int(torch.argmax(scores))
        if not math.isfinite(float(scores[best])):
            raise ErnieLocalError(
                f"the model's score for token {best} of {scores.numel()} is {float(scores[best])}",
                "weights or activations overflowed, so that no next token can be chosen",
                overflow_hint(self._dtype),
            )
        if self._options.temperature == 0:
            return best
        return int(torch.multinomial(self._filtered(scores), 1, generator=self._generator))

    def probabilities(self, logits: torch.Tensor, seen_ids: Collection[int] = ()) -> torch.Tensor:
        """(vocab,) float32 on the CPU: what `pick` draws from; one 1.0 for greedy."""
        scores = self._penalized(logits, seen_ids)
        if self._options.temperature > 0:
            return self._filtered(scores)
        return torch.nn.functional.one_hot(torch.argmax(scores), scores.numel()).float()

    def _penalized(self, logits: torch.Tensor, seen_ids: Collection[int]) -> torch.Tensor:
        scores = logits.detach().to("cpu", torch.float32)
        if self._options.repetition_penalty == 1 or not seen_ids:
            return scores
        seen = torch.tensor(sorted(seen_ids), dtype=torch.int64)
        # The vocabulary of the scores may end before the ids of a prompt do.
        seen = seen[seen < scores.numel()]
        old = scores[seen]
        # Dividing a negative score would raise it, so that one is multiplied.
        penalty = self._options.repetition_penalty
        return scores.index_put((seen,), torch.where(old < 0, old * penalty, old / penalty))

    def _filtered(self, scores: torch.Tensor) -> torch.Tensor:
        options = self._options
        # The largest becomes 0 first: a tiny temperature then gives minus infinity and not NaN.
        scores = (scores - scores.max()) / min(max(options.temperature, _COLDEST), _HOTTEST)
        if 0 < options.top_k < scores.numel():
            smallest_kept = torch.topk(scores, options.top_k).values[-1]
            scores = scores.masked_fill(scores < smallest_kept, -math.inf)
        if options.top_p < 1:
            sorted_scores, order = torch.sort(scores, descending=True)
            sorted_probabilities = torch.softmax(sorted_scores, dim=0)
            # A token stays while those before it have not reached top_p, so the likeliest always stays.
            before = torch.cumsum(sorted_probabilities.double(), dim=0) - sorted_probabilities
            scores = scores.index_fill(0, order[before >= options.top_p], -math.inf)
        probabilities = torch.softmax(scores, dim=0)
        if options.min_p > 0:
            probabilities = probabilities * (probabilities >= options.min_p * probabilities.max())
            probabilities = probabilities / probabilities.sum()
        return probabilities
