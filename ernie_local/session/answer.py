"""Defines an answer with its figures, and the error for one that says nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ernie_local.errors import NoAnswer, parameter
from ernie_local.experts.options import PagingStats
from ernie_local.media.image_size import ImageReport
from ernie_local.media.video_size import VideoReport
from ernie_local.session.boxes import AnswerBox
from ernie_local.session.generation import Generation
from ernie_local.session.messages import FinishReason
from ernie_local.session.times import AnswerTime
from ernie_local.session.tools import ToolStep
from ernie_local.text.reasoning import ToolCall

_SHOWN_CHARACTERS = 60  # of an answer that was cut off


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens.

    prompt_tokens: the whole conversation up to the answer; image_tokens of them stand for images (of all
    turns), video_tokens for videos, cached_tokens of them were there already and not computed again: from the
    turns before, as what the model wrote in rounds of calls, or, these are restored_tokens, from the cache
    folder. reused_images: those of its images whose tokens were computed, but whose features the vision tower
    had made before. completion_tokens: those that the model chose, in all rounds, without the end token;
    reasoning_tokens are the part of the reasoning.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    restored_tokens: int = 0
    reused_images: int = 0
    video_tokens: int = 0


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

    text, reasoning: with rounds of calls, of all of them, parted by blank lines. steps: the calls that the
    chat ran. tool_calls: of the end, which whoever asked runs.
    value: what a whole answer in a form means: its JSON as Python has it, or its text; None without a form,
    and for an answer that was cut off. confidence: how sure the model was of each part of the value, from 0
    to 1, by path, as in `lines[0].price` (see `structured.confidence`).
    boxes: the places in images that the text names, in its order. box_notes: what of it looks like a box and
    is none, or was cut at the edge of the image, a line each.
    times: the moments of videos that the text names, in its order. videos: those of this turn.
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
    steps: tuple[ToolStep, ...] = ()
    times: tuple[AnswerTime, ...] = ()
    videos: tuple[VideoReport, ...] = ()


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
