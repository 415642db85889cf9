"""Answers POST /v1/chat/completions, whole or as a stream of pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from ernie_local.sampling import SamplingOptions
from ernie_local.server.asking import check_supported, max_tokens_of, stops_of, thinking_of
from ernie_local.server.attachments import AttachmentLimits, Attachments
from ernie_local.server.conversation import call_arguments, chat_messages, tool_descriptions
from ernie_local.server.events import DONE, PING, data_line
from ernie_local.server.forms import call_form_of, form_of
from ernie_local.server.logprobs import chat_logprobs
from ernie_local.server.requests import Body, ChatRequest, message_key
from ernie_local.server.service import Begun, ClientQuestion, Ended, Event, Silence, all_of
from ernie_local.session import Answer, FinishReason, Piece, ToolCall
from ernie_local.text.reasoning import TokenScore


def question_of(
    body: Body[ChatRequest], limits: AttachmentLimits, of_model: SamplingOptions
) -> ClientQuestion:
    """The question of a request; ApiError where it asks for what is not possible."""
    request = body.request
    check_supported(request)
    thinking, thinking_budget = thinking_of(request)
    call_form = call_form_of(request.tools or (), request.tool_choice)
    return ClientQuestion(
        messages=lambda pause: chat_messages(request.messages, Attachments(limits, pause)),
        keys=[message_key(message) for message in request.messages],
        sampling=body.sampling_over(of_model),
        tools=() if request.tool_choice == "none" else tool_descriptions(request.tools),
        thinking=thinking,
        thinking_budget=thinking_budget,
        max_tokens=max_tokens_of(request),
        stops=stops_of(request.stop),
        form=call_form or form_of(request.response_format),
        is_call=call_form is not None,
        top_scores=request.top_logprobs or 0 if request.logprobs else None,
    )


class ChatCompletion:
    """The objects of one answer: all of them have its id."""

    def __init__(self, model_name: str, request: ChatRequest) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }
        options = request.stream_options
        self._includes_usage = bool(options is not None and options.include_usage)
        self._has_logprobs = bool(request.logprobs)

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """The object for a client that waits for all of it."""
        pieces, ended = await all_of(events)
        scores = [score for piece in pieces for score in piece.scores]
        texts = {
            kind: "".join(piece.text for piece in pieces if piece.kind == kind)
            for kind in ("reasoning", "answer")
        }
        calls = _calls(ended.tool_calls)
        content = texts["answer"]
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
        message["refusal"] = None
        if texts["reasoning"]:
            message["reasoning_content"] = message["reasoning"] = texts["reasoning"]
        if calls:
            message["tool_calls"] = calls
        message |= places_of(ended.answer)
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(scores),
            "finish_reason": _finish_reason(ended.finish_reason, bool(calls)),
        }
        usage = usage_of(ended.answer)
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    async def lines(self, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
        """Server-sent events: the role, pieces, calls of tools, how it ended, perhaps the usage, [DONE]."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for event in events:
            match event:
                case Silence():
                    yield PING
                case Begun():
                    pass
                case Piece(kind="reasoning", text=text):
                    yield self._chunk({"reasoning_content": text, "reasoning": text})
                case Piece(text=text, scores=scores):
                    yield self._chunk({"content": text}, scores=scores)
                case Ended(answer=answer, finish_reason=reason, tool_calls=calls):
                    for index, call in enumerate(_calls(calls)):
                        for delta in _call_deltas(index, call):
                            yield self._chunk({"tool_calls": [delta]})
                    yield self._chunk(places_of(answer), _finish_reason(reason, bool(calls)))
                    if self._includes_usage:
                        yield data_line(self._chunk_object([], usage=usage_of(answer)))
        yield DONE

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        return chat_logprobs(scores) if self._has_logprobs else None

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, scores: Sequence[TokenScore] = ()
    ) -> bytes:
        logprobs = self._logprobs(scores) if scores else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return data_line(self._chunk_object([choice]))

    def _chunk_object(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}


def usage_of(answer: Answer) -> dict[str, Any]:
    """Counts of tokens by the names that clients read."""
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "video_tokens": usage.video_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def places_of(answer: Answer) -> dict[str, Any]:
    """The fields `boxes` and `times`: places in images and moments of videos that the answer names.

    No field where it names none.
    """
    boxes = [
        {"label": box.label, "image": box.image, "box": box.thousandths, "original": box.original}
        for box in answer.boxes
    ]
    times = [{"seconds": time.seconds, "text": time.text, "video": time.video} for time in answer.times]
    return {name: found for name, found in (("boxes", boxes), ("times", times)) if found}


def _finish_reason(reason: FinishReason, has_calls: bool) -> str:
    if has_calls:
        return "tool_calls"
    return "length" if reason == "length" else "stop"


def _calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call_arguments(call),
            },
        }
        for call in calls
    ]


def _call_deltas(index: int, call: dict[str, Any]) -> list[dict[str, Any]]:
    """First who is called, then with what."""
    function = call["function"]
    first = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
    return [first, {"index": index, "function": {"arguments": function["arguments"]}}]
