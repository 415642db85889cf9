"""Generates one answer token by token, as pieces of reasoning and answer, within its limits.

The limits are the end tokens, max_tokens, the budget of the reasoning, the context, and a stop from outside.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ernie_local.errors import Interrupted
from ernie_local.sampling import Sampler
from ernie_local.session.messages import FinishReason
from ernie_local.session.sequence import CachedSequence
from ernie_local.session.writer import ChatWriter
from ernie_local.text.reasoning import OUTPUT_TAGS, THINK_OPEN, Piece, ReasoningParser, ToolCall
from ernie_local.text.template import ThoughtState
from ernie_local.text.tokenizer import ErnieTokenizer, StreamDecoder

# A quarter of the tokens is kept for the answer, so that a thought never takes all of them; the share is
# capped, since answers are short compared with thoughts.
_ANSWER_SHARE = 4
_LARGEST_ANSWER_RESERVE = 1024
_LOCATION_START = "<|LOC_"


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """max_tokens: that the model may choose; thinking_tokens: of them, before a thought is closed.

    room: places in the context behind the prompt, for the chosen tokens and those that close a thought.
    """

    max_tokens: int
    thinking_tokens: int
    room: int


def find_limits(
    room: int, max_tokens: int | None, thinking_budget: int | None, close_length: int
) -> AnswerLimits:
    """Limits from what was asked for and the `room` that the context has.

    Whatever the budget, a thought leaves places for closing it (`close_length`) and a share for the answer.
    """
    most = room if max_tokens is None else min(room, max_tokens)
    reserve = max(1, min(most // _ANSWER_SHARE, _LARGEST_ANSWER_RESERVE))
    thinking = max(0, min(most, room - close_length) - reserve)
    return AnswerLimits(most, thinking if thinking_budget is None else min(thinking, thinking_budget), room)


def hidden_ids(tokenizer: ErnieTokenizer) -> frozenset[int]:
    """Special tokens that are not text of an answer: all but the tags of the output and the locations."""
    return frozenset(
        token_id
        for token_id in tokenizer.special_ids
        if (text := tokenizer.token_bytes(token_id).decode("utf-8")) not in OUTPUT_TAGS
        and not text.startswith(_LOCATION_START)
    )


class Generation:
    """The answer to one prompt. Until it has ended otherwise, it counts as interrupted.

    The attributes are right at any time: after an exception they say how far it came.
    """

    def __init__(
        self,
        writer: ChatWriter,
        sampler: Sampler,
        limits: AnswerLimits,
        should_stop: Callable[[], bool],
        *,
        thought: ThoughtState,
    ) -> None:
        """writer: of the prompt. should_stop: asked before each token. thought: how the prompt ends."""
        self.finish_reason: FinishReason = "interrupted"
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._num_places = 0
        self._writer = writer
        self._sampler = sampler
        self._parser = ReasoningParser(in_reasoning=thought == "open", with_tools=bool(writer.tools))
        self._decoder = StreamDecoder(writer.tokenizer, hidden_ids(writer.tokenizer))
        self._limits = limits
        self._should_stop = should_stop
        # A thought that is not wanted, or was closed from outside, is not to be opened again.
        self._may_think = thought != "closed"
        self._thought_has_ended = False
        self._texts: dict[str, list[str]] = {"reasoning": [], "answer": []}
        self._has_ended = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts["answer"])

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._texts["reasoning"])

    @property
    def has_answer(self) -> bool:
        """Whether there is text of an answer, or a call of a tool."""
        return bool(self.text.strip() or self.tool_calls)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools so far."""
        return tuple(self._parser.tool_calls)

    def pieces(
        self, sequence: CachedSequence, prefill: Callable[[], torch.Tensor], prompt_ids: Collection[int]
    ) -> Iterator[Piece]:
        """Run to the end: `prefill` fills `sequence` with the prompt and gives the logits (vocab,) after it.

        prompt_ids: the ids that a repetition penalty counts as seen.
        """
        started = time.perf_counter()
        try:
            logits = prefill()
        except Interrupted:
            return
        finally:
            self.prefill_seconds = time.perf_counter() - started
        seen, close_ids = set(prompt_ids), self._writer.close_ids
        while not self._should_stop():
            is_spent = self.num_reasoning_tokens >= self._limits.thinking_tokens
            must_close = self._parser.in_reasoning and (is_spent or self._thought_has_ended)
            if self._is_full(len(close_ids) if must_close else 0):
                self.finish_reason = "length"
                break
            if must_close:
                yield from self._recorded(self._parser.push(self._decoder.finish()))
                self._may_think = False
                self._num_places += len(close_ids)
                with self._timed():
                    logits = sequence.append(close_ids)
                yield from self._recorded(self._parser.push(self._writer.tokenizer.decode(close_ids)))
                seen.update(close_ids)
                continue
            with self._timed():
                token_id = self._pick(logits, seen)
            if token_id in self._writer.stop_ids:
                if self._parser.in_reasoning:
                    # A model that ends its turn inside its thought has an answer all the same.
                    self._thought_has_ended = True
                    continue
                self.finish_reason = "stop"
                break
            seen.add(token_id)
            self.num_tokens += 1
            self._num_places += 1
            self.num_reasoning_tokens += self._parser.in_reasoning
            yield from self._recorded(self._parser.push(self._decoder.push(token_id)))
            # Nobody would read the logits after the last token.
            if not self._is_full(0):
                with self._timed():
                    logits = sequence.decode(token_id)
        yield from self.end()

    def end(self) -> list[Piece]:
        """The text still held back, recorded; after this nothing more comes."""
        if self._has_ended:
            return []
        self._has_ended = True
        return self._recorded(self._parser.push(self._decoder.finish()) + self._parser.finish())

    def _is_full(self, num_coming: int) -> bool:
        """Whether no token may be chosen any more once `num_coming` others are there."""
        limits = self._limits
        return self.num_tokens >= limits.max_tokens or self._num_places + num_coming >= limits.room

    def _pick(self, logits: torch.Tensor, seen: Collection[int]) -> int:
        # Rows behind the tokenizer's last id stand for no text.
        logits = logits[: self._writer.tokenizer.vocab_size]
        think_id = self._writer.tokenizer.id_of(THINK_OPEN)
        if not self._may_think and think_id is not None:
            logits = logits.index_fill(0, torch.tensor([think_id], device=logits.device), -math.inf)
        return self._sampler.pick(logits, seen)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.decode_seconds += time.perf_counter() - started

    def _recorded(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            self._texts[piece.kind].append(piece.text)
        return pieces
