"""Defines what is known of an answer when it has ended: text, tokens, seconds, memory, images."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ernie_local.experts.options import PagingStats
from ernie_local.media.image_size import ImageReport
from ernie_local.text.reasoning import ToolCall

# stop: the model ended it; length: max_tokens or the context ended it; interrupted: someone stopped it.
FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens.

    prompt_tokens: the whole conversation up to the answer; image_tokens of them stand for images (of all
    turns), cached_tokens of them were there from the turns before and not computed again.
    completion_tokens: those that the model chose, without the end token; reasoning_tokens are the part of
    the reasoning.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


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


def peak_memory_bytes() -> int | None:
    """The most bytes that this process has had resident so far; None where the system does not tell."""
    # Linux hands ru_maxrss of a parent down through exec, so the mark of this program alone comes first.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
