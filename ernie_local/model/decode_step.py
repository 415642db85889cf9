"""Decodes the next tokens of one or several sequences of a model in one step, all of them or none."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ernie_local.model.ernie import ErnieModel, NextToken
from ernie_local.model.moe import RouteHook
from ernie_local.model.shared_steps import Commit, StepRequest


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to rewind to: tokens in the cache, and the position of the token after them."""

    length: int
    next_position: int


class DecodedSequence(Protocol):
    """What a step needs of an Engine."""

    model: ErnieModel
    on_route: RouteHook | None

    def mark(self) -> Mark:
        """Remember this point."""
        ...

    def rewind(self, mark: Mark) -> None:
        """Forget every token after it."""
        ...

    def undo(self, before: Mark) -> None:
        """Forget what was begun after `before` and did not end."""
        ...

    def begin_token(self, token_id: int) -> NextToken:
        """Check that the token can be decoded, and make room for it."""
        ...

    def end_token(self) -> None:
        """The token has been computed."""
        ...

    def decode_alone(self, token_id: int) -> torch.Tensor:
        """All of it, for one sequence: logits (vocab_size,)."""
        ...


class TokenRequest(StepRequest):
    """A token that a thread wants decoded. before: where its sequence was when a step for it began."""

    def __init__(self, sequence: DecodedSequence, token_id: int, *, is_text: bool) -> None:
        """is_text: whether the bank of text serves the token."""
        joins = is_text and sequence.model.joins_sequences
        # One hook sees a whole step.
        super().__init__(sequence, id(sequence.on_route) if joins else None)
        self.sequence = sequence
        self.token_id = token_id
        self.before: Mark | None = None
        self.logits: torch.Tensor | None = None


def compute_tokens(requests: Sequence[TokenRequest]) -> None:
    """Compute a step of one model, for `ErnieModel.compute_step`."""
    if len(requests) == 1 and requests[0].thread == threading.get_ident():
        _compute(requests)
        return
    try:
        _compute(requests)
    except Exception as error:  # a hook of another thread may raise any
        if isinstance(error, torch.OutOfMemoryError):
            raise  # experts give way, and the step is tried again
        # Each thread finds out whether it is its own, with a step for its token alone.
        for request in requests:
            request.is_alone = True


def _compute(requests: Sequence[TokenRequest]) -> None:
    commit = Commit()
    try:
        for request in requests:
            if request.before is not None:  # an earlier step was not undone to its end
                request.sequence.rewind(request.before)
            request.before = request.sequence.mark()
        if len(requests) == 1:
            rows = [requests[0].sequence.decode_alone(requests[0].token_id)]
        else:
            rows = [*_decode_together(requests)]
        for request, row in zip(requests, rows, strict=True):
            request.logits, request.commit = row, commit
        commit.is_done = True
    except BaseException:
        for request in requests:
            if request.before is not None and not commit.is_done:
                request.sequence.undo(request.before)
                request.before = None
        raise


def _decode_together(requests: Sequence[TokenRequest]) -> torch.Tensor:
    """Logits of all, (sequences, vocab_size)."""
    first = requests[0].sequence
    tokens = [request.sequence.begin_token(request.token_id) for request in requests]
    with torch.inference_mode():
        logits = free_logits(first.model, first.model.decode_together(tokens, first.on_route))
    for request in requests:
        request.sequence.end_token()
    return logits


def free_logits(model: ErnieModel, hidden: torch.Tensor) -> torch.Tensor:
    """Of these states, (tokens, vocab_size), such that samplers may write to them."""
    with torch.inference_mode(False), torch.no_grad():
        return model.logits(hidden)
