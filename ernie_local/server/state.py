"""Tells the page what the server is at: its model, the phase, what waits, tokens, memory, and its limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ernie_local.media.video_stamp import has_extra
from ernie_local.planner.terms import Phase
from ernie_local.server.attachments import AttachmentLimits
from ernie_local.server.guard import GuardSettings
from ernie_local.server.memory import ServedMemory
from ernie_local.server.service import Progress, Service

_PHASES: Mapping[str, Phase] = {"images": "vision", "tokens": "prefill", "model": "prefill"}


def page_state(
    model_name: str,
    service: Service | None,
    memory: ServedMemory | None,
    guard: GuardSettings,
    attachments: AttachmentLimits,
) -> dict[str, Any]:
    """The object of GET /page/state. Sizes are bytes; `pieces` over `seconds` of two of them is a rate."""
    state: dict[str, Any] = {
        "model": model_name,
        "is_ready": service is not None,
        "phase": "load",
        "seconds": time.monotonic(),
        "memory": [] if memory is None else memory.as_json(),
        "limits": {
            "file_bytes": attachments.max_bytes,
            "request_bytes": guard.max_body_bytes,
            "images": attachments.max_images,
        },
    }
    if service is None:
        return state
    progress = service.progress
    settings = service.model.settings
    return state | {
        "phase": _phase(service, progress),
        "progress": None if progress is None else progress._asdict(),
        "modalities": modalities_of(service),
        "running": service.num_running,
        "waiting": service.num_waiting,
        "parallel": settings.parallel,
        "pieces": service.num_pieces,
        "context_size": settings.context_size,
    }


def modalities_of(service: Service) -> list[str]:
    """What the served model reads: text, images, and videos where the package for them is installed."""
    if not service.model.config.reads_images:
        return ["text"]
    return ["text", "image", *(["video"] if has_extra() else [])]


def _phase(service: Service, progress: Progress | None) -> Phase | None:
    """The phase of the planner that the server is in; None where it waits for questions."""
    if progress is not None:
        return _PHASES[progress.unit]
    return "decode" if service.num_running else None
