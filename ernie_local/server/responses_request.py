"""Defines the body of POST /v1/responses, and writes it as one of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ernie_local.server.failures import bad_request
from ernie_local.server.requests import (
    AnyRequest,
    AskedDetail,
    CalledFunction,
    CalledTool,
    ChatRequest,
    ChatRequestMessage,
    Count,
    Effort,
    FileData,
    FilePart,
    ImageUrl,
    ImageUrlPart,
    NamedSchema,
    Part,
    RefusalPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolFunction,
    converted,
)

INCLUDED_LOGPROBS = "message.output_text.logprobs"
_VIDEO_PARTS = ("input_video", "video_url")


class InputText(Struct, tag="input_text"):
    """A text of a user, in /v1/responses."""

    text: str


class OutputText(Struct, tag="output_text"):
    """A text that the model wrote before."""

    text: str


class InputImage(Struct, tag="input_image"):
    """An image by its address."""

    image_url: str | None = None
    detail: AskedDetail | None = None
    file_id: str | None = None


class InputFile(Struct, tag="input_file"):
    """A document in the request itself."""

    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


InputPart: TypeAlias = InputText | OutputText | InputImage | InputFile | RefusalPart


class InputMessage(Struct, tag="message"):
    """A message among the input of /v1/responses."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]


class FunctionCallItem(Struct, tag="function_call"):
    """A call that the model asked for."""

    name: str
    arguments: str = "{}"
    call_id: str | None = None


class FunctionOutputItem(Struct, tag="function_call_output"):
    """What a called function gave."""

    output: str | list[InputPart]
    call_id: str | None = None


class ReasoningItem(Struct, tag="reasoning"):
    """A thought of before; it is not said to the model again."""


InputItem: TypeAlias = InputMessage | FunctionCallItem | FunctionOutputItem | ReasoningItem


class ReasoningSettings(Struct):
    """How much the model may think."""

    effort: Effort | None = None


class TextFormat(NamedSchema):
    """Whether an answer is free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextSettings(Struct):
    """The form of the answer's text."""

    format: TextFormat | None = None


class ResponsesTool(Struct):
    """A function, as /v1/responses writes it: without an object of its own."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    type: Literal["function"] = "function"


class ResponsesRequest(AnyRequest, kw_only=True):
    """The body of POST /v1/responses, of which nothing is kept."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    reasoning: ReasoningSettings | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | None = None
    text: TextSettings | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    previous_response_id: str | None = None
    store: bool | None = None


def ignored_includes(request: ResponsesRequest) -> list[str]:
    """What the client wants to be told and nothing here knows of, each as a field for the log."""
    return [f"include: {one}" for one in request.include or () if one != INCLUDED_LOGPROBS]


def as_chat_request(request: ResponsesRequest) -> ChatRequest:
    """The same question in the other form; ApiError for what is kept on OpenAI's side only."""
    has_logprobs = INCLUDED_LOGPROBS in (request.include or ())
    if request.top_logprobs and not has_logprobs:
        raise bad_request(
            f'top_logprobs is {request.top_logprobs} without include: ["{INCLUDED_LOGPROBS}"]', "top_logprobs"
        )
    if request.previous_response_id is not None:
        raise bad_request("answers are not kept here: send the whole conversation", "previous_response_id")
    messages = []
    if request.instructions:
        messages.append(ChatRequestMessage("system", request.instructions))
    if isinstance(request.input, str):
        messages.append(ChatRequestMessage("user", request.input))
    else:
        _refuse_videos(request.input)
        # Items without a type are messages.
        items = [converted({"type": "message", **item}, InputItem) for item in request.input]
        messages += _messages(items)
    if not messages:
        raise bad_request("the input is empty", "input")
    tools = [
        Tool(ToolFunction(tool.name, tool.description, tool.parameters, tool.strict))
        for tool in request.tools or ()
    ]
    return ChatRequest(
        messages=messages,
        max_tokens=request.max_output_tokens,
        tools=tools,
        tool_choice=request.tool_choice,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        response_format=_format_of(request.text),
        stream=request.stream,
        logprobs=has_logprobs,
        top_logprobs=request.top_logprobs,
    )


def _refuse_videos(items: Sequence[dict[str, Any]]) -> None:
    """ApiError for a video, which this interface has no part for."""
    for content in (item.get(name) for item in items for name in ("content", "output")):
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") in _VIDEO_PARTS:
                raise bad_request(
                    f"{part['type']} is no part of /v1/responses: send the video as video_url to "
                    "/v1/chat/completions",
                    "input",
                )


def _format_of(text: TextSettings | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    return ResponseFormat(text.format.type, text.format)


def _messages(items: list[InputItem]) -> list[ChatRequestMessage]:
    messages: list[ChatRequestMessage] = []
    for item in items:
        match item:
            case InputMessage(role=role, content=content):
                messages.append(ChatRequestMessage(role, _content(content)))
            case FunctionCallItem(name=name, arguments=arguments, call_id=call_id):
                call = CalledTool(CalledFunction(name, arguments), call_id)
                last = messages[-1] if messages else None
                if last is not None and last.role == "assistant":
                    last.tool_calls = [*(last.tool_calls or ()), call]
                else:
                    messages.append(ChatRequestMessage("assistant", "", tool_calls=[call]))
            case FunctionOutputItem(output=output, call_id=call_id):
                messages.append(ChatRequestMessage("tool", _content(output), tool_call_id=call_id))
            case ReasoningItem():
                pass
    return messages


def _content(content: str | list[InputPart]) -> str | list[Part]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: InputPart) -> Part:
    match part:
        case InputText(text=text) | OutputText(text=text):
            return TextPart(text)
        case InputImage(image_url=url, detail=detail):
            if url is None:
                raise bad_request("files are not kept here: send image_url, not file_id", "input")
            return ImageUrlPart(ImageUrl(url, detail))
        case InputFile(file_data=data, filename=name, file_id=file_id):
            return FilePart(FileData(data, name, file_id))
        case RefusalPart():
            return part
