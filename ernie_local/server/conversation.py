"""Turns the messages and tools of a request into those of the library, and calls of tools back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec

from ernie_local.server.attachments import Attachments
from ernie_local.server.failures import bad_request
from ernie_local.server.requests import (
    CalledTool,
    ChatRequestMessage,
    FilePart,
    ImageUrl,
    ImageUrlPart,
    RefusalPart,
    TextPart,
    Tool,
    VideoUrlPart,
)
from ernie_local.session import ChatMessage, MessagePart, ToolCall
from ernie_local.text.template import Role

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def chat_messages(messages: Sequence[ChatRequestMessage], attachments: Attachments) -> list[ChatMessage]:
    """The messages; ApiError for what cannot be said to a model. An empty last one from the assistant, with
    which some clients ask for an answer, is left out.
    """
    said = [_message(message, attachments) for message in messages]
    last = said[-1]
    if last.role == "assistant" and not (last.text or last.reasoning or last.tool_calls):
        said.pop()
    if all(message.role == "assistant" for message in said):
        raise bad_request("no message comes before that of the assistant", "messages")
    return said


def _message(message: ChatRequestMessage, attachments: Attachments) -> ChatMessage:
    role = _ROLES[message.role]
    if role != "assistant":
        return ChatMessage(role, _parts(message, attachments))
    calls = tuple(_tool_call(call) for call in message.tool_calls or ())
    reasoning = message.reasoning_content or message.reasoning or ""
    return ChatMessage(role, _parts(message, attachments), reasoning, calls)


def _parts(message: ChatRequestMessage, attachments: Attachments) -> tuple[MessagePart, ...]:
    if message.content is None:
        return ("",)
    if isinstance(message.content, str):
        return (message.content,)
    parts: list[MessagePart] = []
    for part in message.content:
        match part:
            case TextPart(text=text) | RefusalPart(refusal=text):
                parts.append(text)
            case ImageUrlPart(image_url=ImageUrl(url=url, detail=detail)):
                parts.append(attachments.image(url, detail))
            case ImageUrlPart(image_url=str(url)):
                parts.append(attachments.image(url, None))
            case VideoUrlPart():
                parts.append(attachments.video(part.url, part.settings()))
            case FilePart(file=file):
                if file.file_id is not None and file.file_data is None:
                    raise bad_request("files are not kept here: send file_data, not file_id", "messages")
                parts.append(attachments.file(file.file_data))
    return tuple(parts)


def _tool_call(call: CalledTool) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise bad_request(
            f"the arguments of a call of {call.function.name} are not JSON", "messages"
        ) from error
    if not isinstance(arguments, dict):
        raise bad_request(f"the arguments of a call of {call.function.name} are no object", "messages")
    return ToolCall(call.function.name, arguments)


def tool_descriptions(tools: Sequence[Tool] | None) -> tuple[Mapping[str, object], ...]:
    """The tools as the chat template writes them."""
    described: list[Mapping[str, object]] = []
    names: set[str] = set()
    for tool in tools or ():
        if tool.function.name in names:
            raise bad_request(f"two tools are called {tool.function.name}", "tools")
        names.add(tool.function.name)
        function = {
            name: value
            for name, value in msgspec.to_builtins(tool.function).items()
            if value is not None and name != "strict"
        }
        described.append({"type": "function", "function": function})
    return tuple(described)


def call_arguments(call: ToolCall) -> str:
    """The arguments of a call as the text that clients expect."""
    return json.dumps(call.arguments, ensure_ascii=False)
