"""Keeps what is known of a question until it is answered, and what is known of the answer then."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ernie_local.errors import NoAnswer, parameter
from ernie_local.experts.options import PagingStats
from ernie_local.media.image_size import ImageReport
from ernie_local.sampling import Sampler
from ernie_local.session.boxes import AnswerBox, locate_boxes
from ernie_local.session.generation import Generation
from ernie_local.session.image import ChatImage
from ernie_local.session.messages import ChatMessage, ChatTurn, FinishReason, images_of
from ernie_local.session.sequence import Reuse
from ernie_local.text.reasoning import ToolCall
from ernie_local.text.template import TextPrompt

_SHOWN_CHARACTERS = 60  # of an answer that was cut off


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens.

    prompt_tokens: the whole conversation up to the answer; image_tokens of them stand for images (of all
    turns), cached_tokens of them were there already and not computed again: from the turns before, or, these
    are restored_tokens, from the cache folder. reused_images: those of its images whose tokens were computed,
    but whose features the vision tower had made before.
    completion_tokens: those that the model chose, without the end token; reasoning_tokens are the part of
    the reasoning.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    restored_tokens: int = 0
    reused_images: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. image: opening and preparing images; prefill: the prompt, vision tower included; decode:
    the tokens of the answer; total: from the question to the end, as a clock on the wall shows it.
    """

    image: float
    prefill: float
    decode: float
    total: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that has ended. `images` are the images of this turn; `seed` is the one that was used.

    value: what a whole answer in a form means: its JSON as Python has it, or its text; None without a form,
    and for an answer that was cut off. confidence: how sure the model was of each part of the value, from 0
    to 1, by path, as in `lines[0].price` (see `structured.confidence`).
    boxes: the places in images that the text names, in its order. box_notes: what of it looks like a box and
    is none, or was cut at the edge of the image, a line each.
    peak_memory_bytes: the most that this process has had resident; None where the system does not tell.
    paging: what this answer cost where experts are paged; None where all are in memory.
    """

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    images: tuple[ImageReport, ...]
    seed: int
    peak_memory_bytes: int | None
    paging: PagingStats | None = None
    value: Any = None
    confidence: Mapping[str, float] = field(default_factory=dict)
    boxes: tuple[AnswerBox, ...] = ()
    box_notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """Everything about a question that is known before the model computes.

    history: the turns before. messages: what is asked, with images opened. all_images: of the whole
    conversation, in the order of the prompt. begun: an answer that goes on. is_plain: whether no template
    has written the prompt, so that no turn comes of it.
    """

    prompt: TextPrompt
    sampler: Sampler
    started: float
    paging_before: PagingStats | None
    history: tuple[ChatTurn, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    thinking: bool = False
    all_images: Sequence[ChatImage] = ()
    image_seconds: float = 0.0
    begun: ChatMessage | None = None
    is_plain: bool = False

    def to_answer(self, generation: Generation, reuse: Reuse, paging: PagingStats | None) -> Answer:
        """What is known of the answer now. reuse: of the prompt. paging: what paging has done up to now."""
        value, confidence = generation.find_value()
        asked = images_of(self.messages)
        boxes, box_notes = locate_boxes(generation.text, self.all_images, len(asked))
        return Answer(
            text=generation.text,
            reasoning=generation.reasoning,
            tool_calls=generation.tool_calls,
            finish_reason=generation.finish_reason,
            usage=Usage(
                prompt_tokens=len(self.prompt.token_ids),
                image_tokens=self.prompt.num_image_tokens,
                cached_tokens=reuse.cached_tokens,
                completion_tokens=generation.num_tokens,
                reasoning_tokens=generation.num_reasoning_tokens,
                restored_tokens=reuse.restored_tokens,
                reused_images=reuse.reused_images,
            ),
            timings=Timings(
                image=self.image_seconds,
                prefill=generation.prefill_seconds,
                decode=generation.decode_seconds,
                total=time.perf_counter() - self.started,
            ),
            images=tuple(image.report for image in asked),
            seed=self.sampler.seed,
            peak_memory_bytes=peak_memory_bytes(),
            paging=None if paging is None or self.paging_before is None else paging.since(self.paging_before),
            value=value,
            confidence=confidence,
            boxes=boxes,
            box_notes=box_notes,
        )

    def to_turn(self, generation: Generation) -> ChatTurn:
        """The question with what the model wrote."""
        return ChatTurn(
            question=self.messages,
            answer=("" if self.begun is None else self.begun.text) + generation.text,
            reasoning=("" if self.begun is None else self.begun.reasoning) + generation.reasoning,
            tool_calls=generation.tool_calls,
            thinking=self.thinking,
            finish_reason=generation.finish_reason,
        )


def no_answer(generation: Generation) -> NoAnswer:
    """The error for an answer that has ended without text and a call of a tool, or within its form."""
    num_tokens, num_reasoning = generation.num_tokens, generation.num_reasoning_tokens
    what = f"no answer after {num_tokens} tokens, {num_reasoning} of them reasoning"
    if generation.finish_reason != "length":
        return NoAnswer(
            what,
            "the model ended its turn without one",
            "ask in other words, or with another temperature or seed",
        )
    why = f"{parameter('max_tokens')} or the context ended it before the answer began"
    if generation.text:
        end = generation.text[-_SHOWN_CHARACTERS:]
        what = f"no whole answer after {num_tokens} tokens, {num_reasoning} of them reasoning"
        why = (
            f"{parameter('max_tokens')} or the context ended it within its form, after "
            f"{len(generation.text)} characters: {'...' * (end != generation.text)}{end}"
        )
    return NoAnswer(
        what,
        why,
        f"a larger {parameter('max_tokens')} or {parameter('context_size')}, a smaller "
        f"{parameter('thinking_budget')}, or no thinking",
    )


def peak_memory_bytes() -> int | None:
    """The most bytes that this process has had resident so far; None where the system does not tell."""
    # Linux hands ru_maxrss of a parent down through exec, so the mark of this program alone comes first.
    status = Path("/proc/self/status")
    if status.is_file() and (mark := re.search(rb"VmHWM:\s*(\d+) kB", status.read_bytes())):
        return int(mark[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
