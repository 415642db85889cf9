"""Chat turns on text and images: the only place that joins the text, media and engine packages.

Knows nothing of terminals, of JSON for the command line, or of how the model computes.
"""

from __future__ import annotations

from ernie_local.session.answer import Answer, FinishReason, ImageReport, Timings, Usage
from ernie_local.session.chat import Chat
from ernie_local.session.transcript import Turn
from ernie_local.text.reasoning import Piece, ToolCall

__all__ = ["Answer", "Chat", "FinishReason", "ImageReport", "Piece", "Timings", "ToolCall", "Turn", "Usage"]
