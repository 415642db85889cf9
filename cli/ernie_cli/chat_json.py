"""The object that `ernie-local chat --json` prints: its shape, described in docs/chat-json.md.

Owns the names and the units. Every key is always there; what is not known is null (or an empty list).
Knows nothing of how an answer is made or printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.session import Answer, ChatImage

SCHEMA = "ernie-local.chat/1"

_USAGE_KEYS = ("prompt_tokens", "image_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
_TIMING_KEYS = ("load", "image", "prefill", "decode", "total")


def empty_object(model: str | None = None) -> dict[str, object]:
    """The object of a run that has not come to an answer."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "model": model,
        "text": None,
        "reasoning": None,
        "finish_reason": None,
        "usage": dict.fromkeys(_USAGE_KEYS),
        "timings": dict.fromkeys(_TIMING_KEYS),
        "memory": {"peak_rss_bytes": None},
        "paging": None,
        "images": [],
        "error": None,
    }


def answer_fields(answer: Answer, load_seconds: float) -> dict[str, object]:
    """The keys that an answer fills; `load_seconds` is the time the model took to load."""
    usage, timings = answer.usage, answer.timings
    return {
        "text": answer.text,
        "reasoning": answer.reasoning or None,
        "finish_reason": answer.finish_reason,
        "usage": {key: getattr(usage, key) for key in _USAGE_KEYS},
        "timings": {
            "load": round(load_seconds, 4),
            **{key: round(getattr(timings, key), 4) for key in _TIMING_KEYS if key != "load"},
        },
        "memory": {"peak_rss_bytes": answer.peak_memory_bytes},
        "paging": None if answer.paging is None else asdict(answer.paging),
    }


def image_list(images: Sequence[ChatImage]) -> list[dict[str, object]]:
    """One entry an image; sizes are [width, height] in pixels."""
    return [
        {
            "name": report.name,
            "size": list(report.original_size),
            "resized": list(report.resized_size),
            "tokens": report.tokens,
            "scale": round(report.scale, 4),
        }
        for report in (image.report for image in images)
    ]
