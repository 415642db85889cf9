"""Turns the fields of a request into a question for the service: thinking, limits, stop texts."""

from __future__ import annotations

from collections.abc import Mapping

from ernie_local.server.failures import bad_request
from ernie_local.server.requests import ChatRequest, Effort

# Most tokens of a thought; of the other efforts as many as the context leaves.
_EFFORT_TOKENS: Mapping[Effort | None, int] = {"minimal": 256, "low": 1024, "medium": 4096}


def thinking_of(request: ChatRequest) -> tuple[bool | None, int | None]:
    """Whether to think (None: as the model was made for), and the most tokens of it.

    What a client says of the switch itself counts more than an effort.
    """
    effort, template = request.reasoning_effort, request.chat_template_kwargs
    wanted = request.enable_thinking if template is None else template.enable_thinking
    if wanted is None and effort is not None:
        wanted = effort != "none"
    budgets = [
        request.thinking_budget,
        None if template is None else template.thinking_budget,
        _EFFORT_TOKENS.get(effort),
    ]
    return wanted, next((budget for budget in budgets if budget is not None), None)


def check_supported(request: ChatRequest) -> None:
    """ApiError 400 for what changes an answer and is not possible here."""
    if request.n not in (None, 1):
        raise bad_request(f"n is {request.n}; one answer a request is possible", "n")
    if request.top_logprobs and not request.logprobs:
        raise bad_request(f"top_logprobs is {request.top_logprobs} without logprobs: true", "top_logprobs")


def max_tokens_of(request: ChatRequest) -> int | None:
    """The most tokens of thought and answer, by its newer or its older name."""
    return request.max_completion_tokens or request.max_tokens


def stops_of(stop: str | list[str] | None) -> list[str]:
    """The texts that end an answer."""
    return [] if stop is None else [stop] if isinstance(stop, str) else stop
