"""Answers POST /v1/responses, whole or as a stream. Nothing of it is kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from ernie_local.server.chat_completions import places_of
from ernie_local.server.conversation import call_arguments
from ernie_local.server.events import PING, named_line
from ernie_local.server.logprobs import token_objects
from ernie_local.server.requests import ChatRequest
from ernie_local.server.service import Ended, Event, Silence, all_of
from ernie_local.session import Answer, Piece, ToolCall


class ResponseWriter:
    """The objects of one answer: its items are a thought, a message, and calls of functions."""

    def __init__(self, model_name: str, request: ChatRequest) -> None:
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model_name,
            "parallel_tool_calls": True,
            "tool_choice": request.tool_choice or "auto",
            "tools": [],
            "store": False,
            "error": None,
            "metadata": {},
        }
        self._items: list[dict[str, Any]] = []
        self._number = 0

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """The object for a client that waits for all of it."""
        pieces, ended = await all_of(events)
        for piece in pieces:
            self._write(piece)
        self._place(ended.answer)
        self._items += _call_items(ended.tool_calls)
        return self._response(ended)

    async def lines(self, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
        """Server-sent events by their names, each with its number."""
        for name in ("response.created", "response.in_progress"):
            yield self._line(name, response=self._response(None))
        async for event in events:
            match event:
                case Silence():
                    yield PING
                case Piece():
                    for line in self._piece_lines(event):
                        yield line
                case Ended():
                    for line in self._last_lines(event):
                        yield line
                case _:
                    pass

    def _piece_lines(self, piece: Piece) -> list[bytes]:
        lines = []
        kind = _item_kind(piece)
        if not self._items or self._items[-1]["type"] != kind:
            lines += self._done_lines()
            self._write(Piece(piece.kind, ""))
            item = self._items[-1]
            lines.append(self._line("response.output_item.added", output_index=self._index, item=item))
            part = _part_of(item)
            lines.append(self._part_line("response.content_part.added", part=dict(part)))
        self._write(piece)
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        lines.append(self._part_line(name, token_objects(piece.scores), delta=piece.text))
        return lines

    def _done_lines(self) -> list[bytes]:
        """The end of the item that is being written, if one is."""
        if not self._items or self._items[-1]["type"] == "function_call":
            return []
        item = self._items[-1]
        item["status"] = "completed"
        part = _part_of(item)
        name = "response.output_text.done" if item["type"] == "message" else "response.reasoning_text.done"
        return [
            self._part_line(name, part.get("logprobs", ()), text=part["text"]),
            self._part_line("response.content_part.done", part=part),
            self._line("response.output_item.done", output_index=self._index, item=item),
        ]

    def _last_lines(self, ended: Ended) -> list[bytes]:
        self._place(ended.answer)
        lines = self._done_lines()
        for item in _call_items(ended.tool_calls):
            self._items.append(item)
            begun = {**item, "arguments": "", "status": "in_progress"}
            place = {"item_id": item["id"], "output_index": self._index}
            arguments = item["arguments"]
            lines += [
                self._line("response.output_item.added", output_index=self._index, item=begun),
                self._line("response.function_call_arguments.delta", **place, delta=arguments),
                self._line(
                    "response.function_call_arguments.done", **place, arguments=arguments, name=item["name"]
                ),
                self._line("response.output_item.done", output_index=self._index, item=item),
            ]
        response = self._response(ended)
        return [*lines, self._line(f"response.{response['status']}", response=response)]

    @property
    def _index(self) -> int:
        return len(self._items) - 1

    def _write(self, piece: Piece) -> None:
        """Append a piece to the last item, or begin one of its kind."""
        kind = _item_kind(piece)
        if not self._items or self._items[-1]["type"] != kind:
            self._items.append(_new_item(kind))
        part = _part_of(self._items[-1])
        part["text"] += piece.text
        if piece.scores:
            part["logprobs"] += token_objects(piece.scores)

    def _place(self, answer: Answer) -> None:
        """Tell with its message which places and moments the answer names."""
        messages = [item for item in self._items if item["type"] == "message"]
        if messages:
            messages[-1].update(places_of(answer))

    def _line(self, event: str, /, **fields: Any) -> bytes:
        self._number += 1
        return named_line(event, {"type": event, "sequence_number": self._number - 1, **fields})

    def _part_line(self, event: str, logprobs: Sequence[dict[str, Any]] = (), /, **fields: Any) -> bytes:
        is_text = event.startswith("response.output_text")
        more: dict[str, Any] = {"logprobs": list(logprobs)} if is_text else {}
        item_id = self._items[-1]["id"]
        return self._line(event, item_id=item_id, output_index=self._index, content_index=0, **more, **fields)

    def _response(self, ended: Ended | None) -> dict[str, Any]:
        if ended is None:
            return {**self._head, "status": "in_progress", "output": [], "usage": None}
        is_cut = ended.finish_reason == "length"
        for item in self._items:
            item["status"] = "completed"
        return {
            **self._head,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._items,
            "usage": _usage(ended.answer),
        }


def _item_kind(piece: Piece) -> str:
    return "message" if piece.kind == "answer" else "reasoning"


def _new_item(kind: str) -> dict[str, Any]:
    if kind == "message":
        text: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": kind,
            "role": "assistant",
            "status": "in_progress",
            "content": [text],
        }
    thought = {"type": "reasoning_text", "text": ""}
    return {
        "id": f"rs_{uuid.uuid4().hex}",
        "type": kind,
        "status": "in_progress",
        "summary": [],
        "content": [thought],
    }


def _part_of(item: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = item["content"][0]
    return part


def _call_items(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": f"call_{uuid.uuid4().hex[:24]}",
            "name": call.name,
            "arguments": call_arguments(call),
            "status": "completed",
        }
        for call in calls
    ]


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
