"""Generates one answer token by token, as pieces of reasoning and answer, within its limits.

The limits are the end tokens, max_tokens, the budget of the reasoning, the context, and a stop from outside.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ernie_local.errors import Interrupted, UsageError, parameter
from ernie_local.sampling import Sampler
from ernie_local.session.messages import ChatMessage, FinishReason
from ernie_local.session.sequence import CachedSequence
from ernie_local.session.token_scores import AnswerScores
from ernie_local.session.writer import ChatWriter
from ernie_local.structured import AnswerForm
from ernie_local.structured.guide import AnswerGuide
from ernie_local.text.reasoning import (
    OUTPUT_TAGS,
    THINK_OPEN,
    Piece,
    PlainText,
    ReasoningParser,
    ToolCall,
)
from ernie_local.text.template import ThoughtState
from ernie_local.text.tokenizer import ErnieTokenizer, StreamDecoder

# A quarter of the tokens is kept for the answer, so that a thought never takes all of them; the share is
# capped, since answers are short compared with thoughts.
_ANSWER_SHARE = 4
_LARGEST_ANSWER_RESERVE = 1024
_LOCATION_START = "<|LOC_"


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How a question is to be answered, as `Chat.send` says it. UsageError for limits that mean nothing."""

    thinking: bool | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = None
    form: AnswerForm | None = None
    top_scores: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_tokens", self.max_tokens, 1),
            ("thinking_budget", self.thinking_budget, 0),
        ):
            if value is not None and value < least:
                raise UsageError(
                    f"{parameter(name, value)} cannot be used",
                    f"it must be {least} or more",
                    parameter(name, max(least, 256)),
                )


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """max_tokens: that the model may choose; thinking_tokens: of them, before a thought is closed.

    room: places in the context behind the prompt, for the chosen tokens and those that close a thought.
    """

    max_tokens: int
    thinking_tokens: int
    room: int


def find_limits(options: AnswerOptions, room: int, close_length: int) -> AnswerLimits:
    """Limits from what was asked for and the `room` that the context has.

    Whatever the budget, a thought leaves places for closing it (`close_length`) and a share for the answer.
    """
    max_tokens, thinking_budget = options.max_tokens, options.thinking_budget
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


def _parser_of(
    thought: ThoughtState | None, begun: ChatMessage | None, *, with_tools: bool
) -> ReasoningParser | PlainText:
    if thought is None:
        return PlainText()
    return ReasoningParser(in_reasoning=thought == "open", with_tools=with_tools, has_begun=begun is not None)


class Generation:
    """The answer to one prompt. Until it has ended otherwise, it counts as interrupted.

    The attributes are right at any time: after an exception they say how far it came.
    """

    def __init__(
        self,
        writer: ChatWriter,
        sampler: Sampler,
        options: AnswerOptions,
        room: int,
        should_stop: Callable[[], bool],
        thought: ThoughtState | None,
        begun: ChatMessage | None = None,
    ) -> None:
        """writer: of the prompt. room: places in the context behind it. should_stop: asked before each token.

        thought: how the prompt ends; None where nothing but text is expected. In a form, a thought before the
        answer is free, and no tool is called. begun: what of the answer is in the prompt.
        """
        self.finish_reason: FinishReason = "interrupted"
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._num_places = 0
        self._writer = writer
        self._sampler = sampler
        self._parser = _parser_of(thought, begun, with_tools=bool(writer.tools))
        self._decoder = StreamDecoder(writer.tokenizer, hidden_ids(writer.tokenizer))
        self._limits = find_limits(options, room, len(writer.close_ids))
        self._should_stop = should_stop
        # A thought that is not wanted, or was closed from outside, is not to be opened again.
        self._may_think = thought != "closed"
        # Of a text without a turn, and of an answer that has begun, nothing more is still something.
        self._is_answered = thought is None or bool(begun is not None and begun.text.strip())
        self._thought_has_ended = False
        self._texts: dict[str, list[str]] = {"reasoning": [], "answer": []}
        self._has_ended = False
        form = options.form
        self._guide = None if form is None else AnswerGuide(form, writer.tokenizer, writer.stop_ids)
        num_likeliest = options.top_scores
        self._scores = None if num_likeliest is None else AnswerScores(writer.tokenizer, num_likeliest)
        # A model writes it itself, unless its answer is held to a form.
        self._separator_is_due = thought == "open"

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
        """Whether there is text of an answer, or a call of a tool; in a form, all of the text.

        What a limit has cut off is not whole, even where it matches the form: 24 of 24.90.
        """
        if self._guide is not None and self.finish_reason != "interrupted":
            return self.finish_reason == "stop" and self._guide.is_fulfilled
        return bool(self._is_answered or self.text.strip() or self.tool_calls)

    def find_value(self) -> tuple[Any, dict[str, float]]:
        """What a whole answer in a form means, and the confidence of its values; None, {} for others."""
        if self._guide is None or self.finish_reason == "interrupted" or not self.has_answer:
            return None, {}
        return self._guide.read(self.text)

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
        seen = set(prompt_ids)
        while not self._should_stop():
            if self._form_is_complete():
                self.finish_reason = "stop"
                break
            closing = self._closing_ids()
            if self._is_full(len(closing)):
                self.finish_reason = "length"
                break
            if closing:
                yield from self._recorded(self._parser.push(self._decoder.finish()))
                self._may_think = self._separator_is_due = False
                self._num_places += len(closing)
                with self._timed():
                    logits = sequence.append(closing)
                yield from self._recorded(self._parser.push(self._writer.tokenizer.decode(closing)))
                seen.update(closing)
                continue
            with self._timed():
                new_ids = self._forced_ids() or [self._pick(logits, seen)]
            if new_ids[0] in self._writer.stop_ids:
                if self._parser.in_reasoning:
                    # A model that ends its turn inside its thought has an answer all the same.
                    self._thought_has_ended = True
                    continue
                self.finish_reason = "stop"
                break
            seen.update(new_ids)
            for token_id in new_ids:
                self.num_tokens += 1
                self._num_places += 1
                self.num_reasoning_tokens += self._parser.in_reasoning
                yield from self._recorded(self._written(token_id))
            # Nobody would read the logits after the last token.
            if not self._form_is_complete() and not self._is_full(0):
                with self._timed():
                    logits = sequence.append(new_ids)
        yield from self.end()

    def end(self) -> list[Piece]:
        """The text still held back, recorded; after this nothing more comes."""
        if self._has_ended:
            return []
        self._has_ended = True
        rest = self._decoder.finish()
        if self._is_guided:
            pieces = [Piece("answer", rest)] if rest else []
        else:
            pieces = self._parser.push(rest) + self._parser.finish()
        if self._scores is not None:
            pieces = self._scores.on_last(pieces)
        return self._recorded(pieces)

    @property
    def _is_guided(self) -> bool:
        """Whether the next token belongs to an answer in a form."""
        return self._guide is not None and not self._parser.in_reasoning

    def _form_is_complete(self) -> bool:
        return self._guide is not None and self._is_guided and self._guide.is_complete

    def _closing_ids(self) -> Sequence[int]:
        """Tokens that come now without a choice: they close a thought, or part it from the answer."""
        if not self._parser.in_reasoning:
            return self._writer.separator_ids if self._separator_is_due and self._is_guided else ()
        is_spent = self.num_reasoning_tokens >= self._limits.thinking_tokens
        return self._writer.close_ids if is_spent or self._thought_has_ended else ()

    def _forced_ids(self) -> list[int]:
        """Tokens of the answer that its form leaves no choice of, as many as the limits have room for."""
        if self._guide is None or not self._is_guided:
            return []
        limits = self._limits
        room = min(limits.max_tokens - self.num_tokens, limits.room - self._num_places)
        forced = self._guide.forced_ids()[:room]
        self._guide.take_forced(forced)
        return forced

    def _written(self, token_id: int) -> list[Piece]:
        """The pieces that a token makes certain."""
        was_in_answer, text = self._parser.in_answer, self._decoder.push(token_id)
        if self._is_guided:  # a tag in it is text of a value
            pieces = [Piece("answer", text)] if text else []
        else:
            pieces = self._parser.push(text)
            if self._guide is not None:
                # Letters behind a </think> that is spelled out are not in the form.
                pieces = [piece for piece in pieces if piece.kind == "reasoning"]
        if self._scores is not None:
            self._scores.add(token_id, in_answer=was_in_answer and self._parser.in_answer)
            pieces = self._scores.on(pieces)
        return pieces

    def _is_full(self, num_coming: int) -> bool:
        """Whether no token may be chosen any more once `num_coming` others are there."""
        limits = self._limits
        return self.num_tokens >= limits.max_tokens or self._num_places + num_coming >= limits.room

    def _pick(self, logits: torch.Tensor, seen: Collection[int]) -> int:
        # Rows behind the last id of the tokenizer stand for no text. On the CPU, as a GPU that lacks memory
        # for more would end the answer here: experts give way to what the model computes alone.
        logits = logits[: self._writer.tokenizer.vocab_size].to("cpu")
        guide, think_id = self._guide, self._writer.tokenizer.id_of(THINK_OPEN)
        if guide is not None and self._is_guided:
            logits = guide.allowed(logits)
            token_id = self._sampler.pick(logits, seen)
            guide.take(token_id)
        else:
            if not self._may_think and think_id is not None:
                logits = logits.index_fill(0, torch.tensor([think_id]), -math.inf)
            token_id = self._sampler.pick(logits, seen)
        if self._scores is not None:
            self._scores.rate(logits, token_id)
        return token_id

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.decode_seconds += time.perf_counter() - started

    def _recorded(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            self._texts[piece.kind].append(piece.text)
        return pieces
