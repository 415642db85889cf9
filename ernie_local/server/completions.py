"""Answers POST /v1/completions: goes on with a text as it is, without a chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from ernie_local.sampling import SamplingOptions
from ernie_local.server.asking import stops_of
from ernie_local.server.chat_completions import usage_of
from ernie_local.server.events import DONE, PING, data_line
from ernie_local.server.failures import bad_request
from ernie_local.server.logprobs import CompletionLogprobs
from ernie_local.server.requests import Body, CompletionRequest
from ernie_local.server.service import ClientQuestion, Ended, Event, Silence, all_of
from ernie_local.session import Piece

# What OpenAI's interface says, so that a client that names none is not surprised.
DEFAULT_MAX_TOKENS = 16
_KEY_LENGTH = 256  # characters or ids of a prompt that are compared at once, to find the slot that knows it


def completion_question(body: Body[CompletionRequest], of_model: SamplingOptions) -> ClientQuestion:
    """The question of a request; ApiError where it asks for what is not possible."""
    request = body.request
    for name, value, usual in (
        ("n", request.n, 1),
        ("best_of", request.best_of, 1),
        ("echo", request.echo, False),
        ("suffix", request.suffix, ""),
    ):
        if value not in (None, usual):
            raise bad_request(f"{name} is {value!r}; only {usual!r} is possible", name)
    prompt = _prompt_of(request.prompt)
    return ClientQuestion(
        prompt=prompt,
        keys=[prompt[at : at + _KEY_LENGTH] for at in range(0, len(prompt), _KEY_LENGTH)],
        sampling=body.sampling_over(of_model),
        max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        stops=stops_of(request.stop),
        top_scores=request.logprobs,
    )


def _prompt_of(given: str | Sequence[str | int | Sequence[int]]) -> str | tuple[int, ...]:
    """A text, or ids of tokens. Some clients send a list of one of these."""
    if isinstance(given, str):
        return given
    if len(given) == 1 and not isinstance(given[0], int):
        return given[0] if isinstance(given[0], str) else tuple(given[0])
    ids = tuple(one for one in given if isinstance(one, int))
    if not ids or len(ids) != len(given):
        raise bad_request(
            f"prompt is a list of {len(given)}; it is one text, or one list of token ids", "prompt"
        )
    return ids


class Completion:
    """The objects of one completion: all of them have its id."""

    def __init__(self, model_name: str, request: CompletionRequest) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }
        options = request.stream_options
        self._includes_usage = bool(options is not None and options.include_usage)
        self._logprobs = None if request.logprobs is None else CompletionLogprobs()

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """The object for a client that waits for all of it."""
        pieces, ended = await all_of(events)
        scores = [score for piece in pieces for score in piece.scores]
        text = "".join(piece.text for piece in pieces)
        choice = self._choice(Piece("answer", text, tuple(scores)), _finish_reason(ended))
        return {**self._head, "choices": [choice], "usage": usage_of(ended.answer)}

    async def lines(self, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
        """Server-sent events: pieces of the text, how it ended, perhaps the usage, [DONE]."""
        async for event in events:
            match event:
                case Silence():
                    yield PING
                case Piece():
                    yield data_line({**self._head, "choices": [self._choice(event, None)]})
                case Ended():
                    last = self._choice(Piece("answer", ""), _finish_reason(event))
                    yield data_line({**self._head, "choices": [last]})
                    if self._includes_usage:
                        yield data_line({**self._head, "choices": [], "usage": usage_of(event.answer)})
                case _:
                    pass
        yield DONE

    def _choice(self, piece: Piece, finish_reason: str | None) -> dict[str, Any]:
        logprobs = None if self._logprobs is None else self._logprobs.object(piece.scores)
        return {"index": 0, "text": piece.text, "logprobs": logprobs, "finish_reason": finish_reason}


def _finish_reason(ended: Ended) -> str:
    return "length" if ended.finish_reason == "length" else "stop"
