"""Holds one question while it is answered, and makes the answer and the turn of it when that ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.errors import NoAnswer, UsageError, parameter
from ernie_local.experts.options import PagingStats
from ernie_local.sampling import Sampler
from ernie_local.session.answer import Answer, Timings, Usage, peak_memory_bytes
from ernie_local.session.generation import Generation
from ernie_local.session.image import ChatImage
from ernie_local.session.messages import ChatMessage, ChatTurn, images_of
from ernie_local.text.template import TextPrompt


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """Everything about a question that is known before the model computes.

    history: the turns before. messages: what is asked, with images opened. all_images: of the whole
    conversation, in the order of the prompt.
    """

    history: tuple[ChatTurn, ...]
    messages: tuple[ChatMessage, ...]
    thinking: bool
    all_images: Sequence[ChatImage]
    prompt: TextPrompt
    sampler: Sampler
    started: float
    image_seconds: float
    cached_tokens: int
    paging_before: PagingStats | None

    def to_answer(self, generation: Generation, paging: PagingStats | None) -> Answer:
        """What is known of the answer now. paging: what paging has done up to now."""
        return Answer(
            text=generation.text,
            reasoning=generation.reasoning,
            tool_calls=generation.tool_calls,
            finish_reason=generation.finish_reason,
            usage=Usage(
                prompt_tokens=len(self.prompt.token_ids),
                image_tokens=self.prompt.num_image_tokens,
                cached_tokens=self.cached_tokens,
                completion_tokens=generation.num_tokens,
                reasoning_tokens=generation.num_reasoning_tokens,
            ),
            timings=Timings(
                image=self.image_seconds,
                prefill=generation.prefill_seconds,
                decode=generation.decode_seconds,
                total=time.perf_counter() - self.started,
            ),
            images=tuple(image.report for image in images_of(self.messages)),
            seed=self.sampler.seed,
            peak_memory_bytes=peak_memory_bytes(),
            paging=None if paging is None or self.paging_before is None else paging.since(self.paging_before),
        )

    def to_turn(self, generation: Generation) -> ChatTurn:
        """The question with what the model wrote."""
        return ChatTurn(
            question=self.messages,
            answer=generation.text,
            reasoning=generation.reasoning,
            tool_calls=generation.tool_calls,
            thinking=self.thinking,
            finish_reason=generation.finish_reason,
        )


def check_limits(max_tokens: int | None, thinking_budget: int | None) -> None:
    """Raise UsageError for limits of an answer that mean nothing."""
    for name, value, least in (("max_tokens", max_tokens, 1), ("thinking_budget", thinking_budget, 0)):
        if value is not None and value < least:
            raise UsageError(
                f"{parameter(name, value)} cannot be used",
                f"it must be {least} or more",
                parameter(name, max(least, 256)),
            )


def no_answer(generation: Generation) -> NoAnswer:
    """The error for an answer that has ended without text and without a call of a tool."""
    num_tokens, num_reasoning = generation.num_tokens, generation.num_reasoning_tokens
    if generation.finish_reason == "length":
        why = f"{parameter('max_tokens')} or the context ended it before the answer began"
        hint = (
            f"a larger {parameter('max_tokens')} or {parameter('context_size')}, a smaller "
            f"{parameter('thinking_budget')}, or no thinking"
        )
    else:
        why = "the model ended its turn without one"
        hint = "ask in other words, or with another temperature or seed"
    return NoAnswer(f"no answer after {num_tokens} tokens, {num_reasoning} of them reasoning", why, hint)
