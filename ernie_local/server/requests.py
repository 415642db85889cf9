"""Defines the bodies of requests as clients of OpenAI's interface send them, and reads them.

Unknown fields are allowed everywhere; `Body.unknown` names those at the top.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from ernie_local.sampling import SamplingOptions
from ernie_local.server.failures import bad_request

AskedDetail: TypeAlias = Literal["low", "high", "auto", "original"]
Count: TypeAlias = Annotated[int, Meta(ge=1)]
AskedStops: TypeAlias = str | Annotated[list[str], Meta(max_length=16)] | None
_Request = TypeVar("_Request", bound=Struct)


class ImageUrl(Struct):
    """Where an image is: data:, https:, or file:."""

    url: str
    detail: AskedDetail | None = None


class TextPart(Struct, tag="text"):
    """A text among images and videos."""

    text: str


class ImageUrlPart(Struct, tag="image_url"):
    """An image; some clients send the bare address."""

    image_url: ImageUrl | str


class VideoSettings(Struct, kw_only=True):
    """Which frames of a video the model sees: so many of each second, or so many in all, of a part of it.

    num_frames: `frames` by its other name. start, end: seconds.
    """

    fps: float | None = None
    frames: int | None = None
    num_frames: int | None = None
    start: float | None = None
    end: float | None = None


class VideoUrl(VideoSettings):
    """Where a video is: data:, https:, or file:."""

    url: str


class VideoUrlPart(VideoSettings, tag="video_url"):
    """A video, a moving GIF or WebP. Its settings stand in the part, or beside the address."""

    video_url: VideoUrl | str

    @property
    def url(self) -> str:
        """The address, however it was sent."""
        return self.video_url if isinstance(self.video_url, str) else self.video_url.url

    def settings(self) -> dict[str, Any]:
        """Those that were said, as VideoPart takes them; ApiError for one that has two values."""
        said: dict[str, Any] = {}
        for place in (self, self.video_url):
            for name in VideoSettings.__struct_fields__:
                value = None if isinstance(place, str) else getattr(place, name)
                known = "frames" if name == "num_frames" else name
                if value is not None and said.setdefault(known, value) != value:
                    raise bad_request(f"{known} of a video is {said[known]} and {value}", "messages")
        return said


class FileData(Struct):
    """A document in the request itself. file_data: a data: address, or base64 alone."""

    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


class FilePart(Struct, tag="file"):
    """A PDF, of which each page is an image, or an image."""

    file: FileData


class RefusalPart(Struct, tag="refusal"):
    """What an assistant refused to do, in a history."""

    refusal: str


Part: TypeAlias = TextPart | ImageUrlPart | VideoUrlPart | FilePart | RefusalPart
Content: TypeAlias = str | list[Part] | None


class CalledFunction(Struct):
    """arguments: JSON as text, as the model wrote them."""

    name: str
    arguments: str = "{}"


class CalledTool(Struct):
    """A call in a history."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class ChatRequestMessage(Struct):
    """One message. `developer` is `system` by its newer name, `function` is `tool` by its older."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class ToolFunction(Struct):
    """What a tool is called and takes. parameters: a JSON schema."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A function that the model may call."""

    function: ToolFunction
    type: Literal["function"] = "function"


class ChosenFunction(Struct):
    """The name of the function that is to be called."""

    name: str


class ChosenTool(Struct):
    """The tool that is to be called."""

    function: ChosenFunction
    type: Literal["function"] = "function"


class NamedSchema(Struct):
    """A JSON schema that the answer has to fit."""

    name: str = "answer"
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """Whether an answer is free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None


class StreamOptions(Struct):
    """include_usage: a last piece tells the counts of tokens."""

    include_usage: bool | None = None


class TemplateSettings(Struct):
    """What clients of vLLM and llama.cpp send for the chat template."""

    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Meta(ge=0)] | None = None


Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class AnyRequest(Struct, kw_only=True):
    """What all requests for tokens have, besides the fields of SamplingOptions by their own names."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatRequest(AnyRequest, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatRequestMessage], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: AskedStops = None
    n: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: Annotated[int, Meta(ge=0)] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateSettings | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionRequest(AnyRequest, kw_only=True):
    """The body of POST /v1/completions. prompt: a text, token ids, or a list of one of these."""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    max_tokens: Count | None = None
    stop: AskedStops = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


@dataclass(frozen=True, slots=True)
class Body(Generic[_Request]):
    """A request as it was read. sampling: the fields that say how tokens are drawn. unknown: those that mean
    nothing here.
    """

    request: _Request
    sampling: Mapping[str, object]
    unknown: Sequence[str]

    def sampling_over(self, of_model: SamplingOptions) -> SamplingOptions:
        """The model's own settings where none were sent. ApiError 400 for a value without a meaning."""
        settings: SamplingOptions = converted({**asdict(of_model), **self.sampling}, SamplingOptions)
        return settings


def read_body(body: bytes, kind: type[_Request]) -> Body[_Request]:
    """The request in a body; ApiError 400 that names the place for one that is none."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    request: _Request = converted(raw, kind)
    known = {one.encode_name for one in msgspec.structs.fields(kind)}
    sampling = {one.name: raw[one.name] for one in fields(SamplingOptions) if raw.get(one.name) is not None}
    return Body(request, sampling, sorted(raw.keys() - known - sampling.keys()))


def converted(raw: object, kind: Any) -> Any:
    """A value as an object of a class; ApiError 400 that names the place where it is none."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        _, found, place = text.partition(" - at `")
        raise bad_request(text, place.strip("`$.") or None if found else None) from None


def message_key(message: ChatRequestMessage) -> bytes:
    """Equal for messages that say and show the same."""
    return hashlib.blake2b(msgspec.json.encode(message), digest_size=16).digest()
