"""Defines what a model may call: tools with their schemas, of Python functions too, and how calls are run.

Whatever goes wrong in a call becomes an error that the model reads; the chat goes on.
"""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_type_hints

import msgspec
from PIL import Image

from ernie_local.errors import ErnieLocalError, UsageError, parameter
from ernie_local.experts.options import PagingStats
from ernie_local.media.open_image import OpenedImage
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.progress import StopQuestion
from ernie_local.session.image import ChatImage, ImagePart
from ernie_local.session.messages import ChatMessage, MessagePart
from ernie_local.text.reasoning import ToolCall

MOST_ROUNDS = 6
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_RESULT_CHARACTERS = 200_000  # more fit no context
_SHOWN_ERROR = 2000  # characters

Arguments: TypeAlias = Mapping[str, object]


class ToolError(Exception):
    """A call that failed; the model reads the text."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Where a tool is called from.

    images: of the chat so far, as the prompt numbers them. asked: those of them that belong to the question.
    processor: how the model reads images. context_size: in tokens. should_stop: whether the answer was
    stopped; a tool that takes long asks it.
    """

    images: tuple[ChatImage, ...]
    asked: tuple[ChatImage, ...]
    processor: ImageProcessorConfig
    context_size: int
    should_stop: StopQuestion


@dataclass(frozen=True, slots=True)
class ChatTool:
    """A function that a model may call, and that the chat runs.

    name, description: what the model is told. parameters: the JSON schema of its arguments. run: gets them as
    the model wrote them, and gives text, an image (a path object, bytes, a PIL image, an ImagePart), a list
    with images among texts, or anything else that has a JSON form; it raises what it likes, best a ToolError.
    UsageError for a name of other signs than letters, digits and _.-
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Arguments, ToolContext], object]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"a tool cannot be called {self.name!r}",
                "a name is 1 to 64 letters, digits and signs of _.-",
                "get_weather",
            )

    @classmethod
    def of(cls, function: Callable[..., object]) -> ChatTool:
        """A tool of a function: its schema from the type hints, its description from the docstring.

        Arguments are converted to the hinted types; `Annotated[int, msgspec.Meta(description=...)]` says more
        of one. UsageError for parameters without a hint, or of types that have no JSON schema.
        """
        name = getattr(function, "__name__", None)
        if not isinstance(name, str) or inspect.iscoroutinefunction(function):
            raise _unfit(function, "a tool is a plain function with a name")
        try:
            hints = get_type_hints(function, include_extras=True)
            fields = [_field(one, hints) for one in inspect.signature(function).parameters.values()]
            values = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
            (reference,), schemas = msgspec.json.schema_components([values], ref_template="#/$defs/{name}")
        except (TypeError, ValueError, NameError) as error:
            raise _unfit(function, str(error)) from error
        schema = schemas.pop(reference["$ref"].removeprefix("#/$defs/"))
        schema.pop("title", None)

        def run(arguments: Arguments, _context: ToolContext) -> object:
            try:
                given = msgspec.convert(dict(arguments), values)
            except msgspec.ValidationError as error:
                raise ToolError(str(error)) from error
            return function(**{field[0]: getattr(given, field[0]) for field in fields})

        parameters = {**schema, "$defs": schemas} if schemas else schema
        return cls(name, inspect.getdoc(function) or "", parameters, run)

    def described(self) -> dict[str, object]:
        """As the chat template writes it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


ToolSource: TypeAlias = "ChatTool | Mapping[str, object] | Callable[..., object]"


@dataclass(frozen=True, slots=True, eq=False)
class ToolStep:
    """A call that the chat ran on the way to an answer, and what came of it.

    round: in which, from 1. result: what the model reads. first_image: the number of its first image in the
    chat, None where it has none. seconds: until the result was there. paging: what the experts of the
    following round cost, in which the model reads it; None where all are in memory, or nothing followed.
    """

    round: int
    call: ToolCall
    result: ChatMessage
    is_error: bool
    seconds: float
    first_image: int | None = None
    paging: PagingStats | None = None


class Toolbox:
    """What a model may call: `descriptions` of all tools, of which those that are no mere mapping are run."""

    def __init__(self, tools: Sequence[ToolSource] = (), max_rounds: int = MOST_ROUNDS) -> None:
        """UsageError for two tools of one name, no rounds, and as of ChatTool."""
        if max_rounds < 1:
            raise UsageError(
                f"{parameter('max_rounds', max_rounds)} cannot be used",
                "it says how often the model may call tools before it has to answer",
                parameter("max_rounds", MOST_ROUNDS),
            )
        self.max_rounds = max_rounds
        self._tools: dict[str, ChatTool] = {}
        self.descriptions: tuple[Mapping[str, object], ...] = ()
        names = set[str]()
        for source in tools:
            if isinstance(source, Mapping):
                name, description = described_name(source), source
            else:
                tool = source if isinstance(source, ChatTool) else ChatTool.of(source)
                name, description = tool.name, tool.described()
                self._tools[name] = tool
            if name is not None and name in names:
                raise UsageError(
                    f"2 tools are called {name}", "the model calls tools by their names", "rename one of them"
                )
            names |= {name} if name is not None else set()
            self.descriptions += (description,)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the tools that are run."""
        return tuple(self._tools)

    def can_run(self, calls: Sequence[ToolCall]) -> bool:
        """Whether the chat goes on by itself: no call is of a tool that only the caller of the chat has."""
        others = {described_name(one) for one in self.descriptions} - set(self._tools)
        return bool(self._tools) and not any(call.name in others for call in calls)

    def run(self, number: int, call: ToolCall, context: ToolContext) -> ToolStep:
        """Run a call of round `number`."""
        started = time.perf_counter()
        try:
            tool = self._tools.get(call.name)
            if tool is None:
                raise ToolError(f"there is no tool {call.name}, only {', '.join(self._tools)}")
            message = ChatMessage("tool", _parts_of(tool.run(call.arguments, context)))
            message, is_error = message.opened(context.processor, context.context_size), False
        except ToolError as error:
            message, is_error = error_message(str(error)), True
        except ErnieLocalError as error:
            message, is_error = error_message(f"{error.what}: {error.why}"), True
        except Exception as error:  # noqa: BLE001  (anybody's code: the model reads what it raised)
            message, is_error = error_message(f"{type(error).__name__}: {error}"), True
        first = len(context.images) + 1 if message.images else None
        return ToolStep(number, call, message, is_error, time.perf_counter() - started, first)


def error_message(text: str) -> ChatMessage:
    """What a model reads of a call that failed."""
    return ChatMessage("tool", f"error: {_encodable(text)[:_SHOWN_ERROR]}")


def described_name(description: Mapping[str, object]) -> str | None:
    """The name in a description of a tool, in OpenAI's form or in that of its function alone."""
    function = description.get("function", description)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def _field(one: inspect.Parameter, hints: Mapping[str, Any]) -> tuple[Any, ...]:
    if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
        raise TypeError(f"{one.name} cannot be given by its name")
    if one.name not in hints:
        raise TypeError(f"{one.name} has no type hint")
    hint = hints[one.name]
    return (one.name, hint) if one.default is one.empty else (one.name, hint, one.default)


def _unfit(function: object, why: str) -> UsageError:
    name = getattr(function, "__name__", None) or repr(function)
    return UsageError(
        f"no tool can be made of {name}",
        why,
        "def get_weather(city: str, days: int = 1) -> str, or ChatTool with a schema of its own",
    )


def _parts_of(value: object) -> tuple[MessagePart, ...]:
    """What a tool gave, as texts and images."""
    has_images = isinstance(value, list | tuple) and any(map(_is_image, value))
    given: Any = value if has_images else [value]
    parts: list[MessagePart] = []
    for part in given:
        if _is_image(part):
            parts.append(part)
            continue
        text = _encodable(part if isinstance(part, str) else _json_of(part))
        if len(text) > _MOST_RESULT_CHARACTERS:
            raise ToolError(f"the result has {len(text)} characters, at most {_MOST_RESULT_CHARACTERS}")
        parts.append(text)
    return tuple(parts)


def _is_image(value: object) -> bool:
    kinds = (os.PathLike, bytes, Image.Image, OpenedImage, ImagePart, ChatImage)
    return isinstance(value, kinds) or hasattr(value, "__array__")


def _json_of(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"the result is neither text nor an image, and has no JSON form: {error}") from error


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which have no UTF-8 form."""
    return text.encode(errors="replace").decode()
