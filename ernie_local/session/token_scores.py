"""Tells how likely the tokens of an answer were, each together with the text that it belongs to.

The probability of a token is that among the tokens that might come: all, or those that the form of the answer
allows, as the model gave them, before temperature, penalties and filters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ernie_local.text.reasoning import Piece, ScoredToken, TokenScore
from ernie_local.text.tokenizer import ErnieTokenizer


class AnswerScores:
    """Rates the tokens of one answer, and hands their scores out with its pieces."""

    def __init__(self, tokenizer: ErnieTokenizer, num_likeliest: int) -> None:
        """num_likeliest: of the tokens that are told beside each chosen one."""
        self._tokenizer = tokenizer
        self._num_likeliest = num_likeliest
        self._rated: TokenScore | None = None
        self._waiting: list[TokenScore] = []

    def rate(self, logits: torch.Tensor, token_id: int) -> None:
        """A token was chosen by these logits, (vocab,), minus infinity for those that could not come."""
        logprobs = torch.log_softmax(logits.detach().to("cpu", torch.float32), dim=0)
        values, ids = torch.topk(logprobs, min(self._num_likeliest, logprobs.numel()))
        likeliest = zip(ids.tolist(), values.tolist(), strict=True)
        self._rated = TokenScore(
            self._scored(token_id, float(logprobs[token_id])),
            tuple(self._scored(*one) for one in likeliest if one[1] > -math.inf),
        )

    def add(self, token_id: int, *, in_answer: bool) -> None:
        """This token, the last one that was rated or one that had to come, was written."""
        score, self._rated = self._rated, None
        # What was rated may not have been written: the end of a turn that only ends its thought.
        if score is None or score.chosen.token_id != token_id:
            certain = self._scored(token_id, 0.0)
            score = TokenScore(certain, (certain,)[: self._num_likeliest])
        if in_answer:
            self._waiting.append(score)

    def on(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces, the last one of the answer with the scores that wait for one."""
        last = max((index for index, piece in enumerate(pieces) if piece.kind == "answer"), default=None)
        with_scores = list(pieces)
        if last is not None:
            with_scores[last] = replace(pieces[last], scores=tuple(self._waiting))
            self._waiting.clear()
        return with_scores

    def on_last(self, pieces: Sequence[Piece]) -> list[Piece]:
        """As `on`, where no piece comes after these: one without text has what still waits."""
        has_answer = any(piece.kind == "answer" for piece in pieces)
        return self.on(pieces if has_answer or not self._waiting else [*pieces, Piece("answer", "")])

    def _scored(self, token_id: int, logprob: float) -> ScoredToken:
        return ScoredToken(token_id, self._tokenizer.token_bytes(token_id), logprob)
