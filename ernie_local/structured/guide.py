"""Holds one answer to its form while it is written, and measures how sure the model was of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ernie_local.errors import ErnieLocalError
from ernie_local.structured.confidence import Choice, find_confidence
from ernie_local.structured.form import AnswerForm
from ernie_local.structured.tokens import vocabulary_of
from ernie_local.text.tokenizer import ErnieTokenizer


class AnswerGuide:
    """Allows the tokens of one answer, one after the other. choices: how those so far were chosen."""

    def __init__(self, form: AnswerForm, tokenizer: ErnieTokenizer, stop_ids: frozenset[int]) -> None:
        """stop_ids: tokens that end an answer; they are allowed wherever the form is fulfilled."""
        from llguidance import LLMatcher

        self.form = form
        self.choices: list[Choice] = []
        self._tokenizer = tokenizer
        self._stop_ids = sorted(stop_ids)
        self._vocabulary = vocabulary_of(tokenizer, stop_ids)
        self._matcher = LLMatcher(self._vocabulary.engine, form.grammar, log_level=0)
        self._check()
        self._num_bytes = 0
        self._allowed_scores: npt.NDArray[np.float32] | None = None

    @property
    def is_fulfilled(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_complete(self) -> bool:
        """Whether the answer has to end here."""
        return bool(self._matcher.is_stopped())

    def forced_ids(self) -> list[int]:
        """The tokens that must come next, before the model has a choice again; may be none.

        They are what the tokenizer writes for the letters that the form leaves no choice of. The last letters
        are left to the model where they could be the beginning of a longer token.
        """
        return list(self._matcher.compute_ff_tokens())

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits, (vocab,) float32 on the CPU, minus infinity for what the form does not allow here."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        # By NumPy, which does this in one thread: so little work waits longer for others than it takes.
        is_allowed = np.unpackbits(bits, count=logits.numel(), bitorder="little").view(np.bool_)
        scores = logits.detach().to("cpu", torch.float32).numpy()
        self._allowed_scores = np.where(is_allowed, scores, -np.float32(np.inf))
        return torch.from_numpy(self._allowed_scores)

    def take(self, token_id: int) -> None:
        """Go on with this token, which was chosen from what `allowed` gave last; a stop token ends."""
        scores = self._allowed_scores
        assert scores is not None, "allowed comes first"
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        ending = max(0.0, 1 - float(shares[self._vocabulary.number_ids].sum()))
        if token_id in self._stop_ids:
            # Whichever of them came, the answer ends.
            chosen = float(shares[self._stop_ids].sum())
            self.choices.append(Choice(self._num_bytes, self._num_bytes, chosen, ending))
        else:
            self._go_on(token_id, float(shares[token_id]), ending)

    def take_forced(self, token_ids: Sequence[int]) -> None:
        """Go on with tokens that `forced_ids` gave."""
        for token_id in token_ids:
            self._go_on(token_id, 1.0, 1.0)

    def read(self, text: str) -> tuple[Any, dict[str, float]]:
        """What the text of the whole answer means, and the confidence of each of its values by its path."""
        return self.form.value(text), find_confidence(self.form, text, self.choices)

    def _go_on(self, token_id: int, probability: float, ending: float) -> None:
        self._matcher.consume_token(token_id)
        self._check()
        start, self._num_bytes = self._num_bytes, self._num_bytes + len(self._tokenizer.token_bytes(token_id))
        self.choices.append(Choice(start, self._num_bytes, probability, ending))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ErnieLocalError(
                f"the form cannot be followed after {len(self.choices)} tokens of the answer",
                " ".join(self._matcher.get_error().split())[:300],
                "a simpler schema or pattern: shorter enums, fewer alternatives that begin alike",
            )
