"""Writes server-sent events."""

from __future__ import annotations

import json

DONE = b"data: [DONE]\n\n"
# A comment, which clients skip, so that no proxy gives up while a prompt is computed.
PING = b": computing\n\n"


def data_line(value: object) -> bytes:
    """One event that carries a JSON value."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def named_line(name: str, value: object) -> bytes:
    """The same with the name of the event."""
    return b"event: " + name.encode() + b"\n" + data_line(value)
