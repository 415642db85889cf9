"""Writes a conversation as token ids, by the chat template of the PT or the Thinking checkpoints.

Only the template writes tags, never a user. A finished turn is always written the same way, so the ids of a
longer conversation begin with those of a shorter one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal, get_args

from ernie_local.config import MediaTokens
from ernie_local.errors import ModelUnusable, UsageError, parameter
from ernie_local.files import read_plain
from ernie_local.text.reasoning import THINK_CLOSE, THINK_OPEN, TOOL_CALL_CLOSE, TOOL_CALL_OPEN, ToolCall
from ernie_local.text.tokenizer import TOKENIZER_CONFIG_NAME, ErnieTokenizer, read_object_if_there

Variant = Literal["pt", "thinking"]
Role = Literal["system", "user", "assistant", "tool"]
_VARIANTS: tuple[Variant, ...] = get_args(Variant)

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
IMAGE_START, IMAGE_END = "<|IMAGE_START|>", "<|IMAGE_END|>"
IMAGE_PLACEHOLDER = "<|IMAGE_PLACEHOLDER|>"
END_TOKENS = ("</s>", END)

THINKING_SYSTEM = (
    "You are a multimodal AI assistant called ERNIE developed by Baidu based on the PaddlePaddle framework."
)
# Each of these is in the Thinking template alone: the PT template has no tools.
_THINKING_MARKS = ("tool_list", "tool_output", "tool_call", THINKING_SYSTEM)
_CHAT_TEMPLATE_NAMES = ("chat_template.jinja", "chat_template.json")
_MAX_TEMPLATE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the template. One that the vocabulary lacks is encoded as text, unless it is `required`."""

    text: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of one image."""

    num_tokens: int


Segment = str | Tag | ImageSlot


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: a text, or texts and the places of images.

    Only users and tools have images, only assistants reasoning and tool_calls.
    """

    role: Role
    content: str | tuple[str | ImageSlot, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def parts(self) -> tuple[str | ImageSlot, ...]:
        """Its texts and images."""
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


def user_message(text: str, image_tokens: Iterable[int] = ()) -> Message:
    """A user's question with images before it. image_tokens: how many tokens each of them takes."""
    return Message("user", (*map(ImageSlot, image_tokens), text))


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Token ids, and where the placeholders of each image are among them."""

    token_ids: tuple[int, ...]
    images: tuple[range, ...]

    @property
    def num_image_tokens(self) -> int:
        """Placeholders of all images."""
        return sum(map(len, self.images))


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One of the two published chat templates."""

    variant: Variant

    @property
    def thinks_by_default(self) -> bool:
        """Whether its checkpoint was trained to reason before it answers."""
        return self.variant == "thinking"

    def segments(
        self,
        messages: Sequence[Message],
        system: str | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        thinking: bool | None = None,
    ) -> list[Segment]:
        """The conversation, and the beginning of the assistant's next turn unless `thinking` is None.

        system: None is the variant's own text (PT has none), "" is none. A system message at the start is
        used instead. UsageError for tools or tool results with PT, which was not trained on them.
        """
        if self.variant == "pt" and (tools or any(message.role == "tool" for message in messages)):
            raise UsageError(
                f"{len(tools)} tools for a chat template without tools",
                "only the Thinking checkpoint was trained to call tools",
                "leave out the tools, or load a Thinking checkpoint",
            )
        if messages and messages[0].role == "system":
            system, messages = messages[0].text, messages[1:]
        segments: list[Segment] = [Tag(BEGIN, required=True)]
        if tools:
            listed = json.dumps(list(tools), ensure_ascii=False)
            segments += ["\n", Tag("<tool_list>"), f"\n{listed}\n", Tag("</tool_list>"), "\n"]
        if system is None:
            system = THINKING_SYSTEM if self.variant == "thinking" else ""
        if system:
            segments.append(f"{system}\n")
        image_numbers = count(1)
        for message in messages:
            if message.role == "assistant":
                segments += self._assistant_turn(message)
            elif message.role == "system":
                segments.append(f"{message.text}\n")
            else:
                segments += _user_turn(message, image_numbers)
        if thinking is not None:
            newline = "\n" if self.variant == "thinking" else ""
            segments += [f"\nAssistant: {newline}", Tag(THINK_OPEN)]
            segments += [newline] if thinking else ["\n\n", Tag(THINK_CLOSE), "\n\n"]
        return segments

    def forced_close(self) -> list[Segment]:
        """What ends the reasoning from outside, so that the answer comes next."""
        return ["\n", Tag(THINK_CLOSE), "\n\n"]

    def _assistant_turn(self, message: Message) -> list[Segment]:
        reasoning, answer = message.reasoning.strip("\n"), message.text.lstrip("\n")
        if self.variant == "thinking":
            # Empty reasoning is written too, as in training.
            thought: list[Segment] = ["\n", Tag(THINK_OPEN), f"\n{reasoning}\n", Tag(THINK_CLOSE), "\n\n"]
        elif reasoning:
            thought = [Tag(THINK_OPEN), f"\n{reasoning}\n", Tag(THINK_CLOSE), "\n"]
        else:
            thought = []
        calls: list[Segment] = []
        for call in message.tool_calls:
            written = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
            calls += [Tag(TOOL_CALL_OPEN), f"\n{written}\n", Tag(TOOL_CALL_CLOSE), "\n"]
        return ["\nAssistant: ", *thought, answer, *calls, Tag(END, required=True)]


def encode_segments(tokenizer: ErnieTokenizer, segments: Iterable[Segment], media: MediaTokens) -> TextPrompt:
    """Ids of the segments. Neighbouring texts are encoded together, as in one string.

    The ids of an image's tags and placeholders are those of config.json. ModelUnusable if the vocabulary
    lacks a required tag.
    """
    token_ids: list[int] = []
    images: list[range] = []
    text = ""
    for segment in segments:
        if isinstance(segment, str):
            text += segment
            continue
        if isinstance(segment, Tag):
            tag_id = tokenizer.id_of(segment.text)
            if tag_id is None:
                if segment.required:
                    size = tokenizer.vocab_size
                    raise ModelUnusable(
                        f"the tokenizer has no token {segment.text}",
                        f"none of its {size} tokens is written so, and every conversation needs it",
                        "use tokenizer.model and tokenizer_config.json of the model's original repository",
                    )
                text += segment.text
                continue
            token_ids += [*tokenizer.encode(text, allow_special=False), tag_id]
        else:
            token_ids += [*tokenizer.encode(text, allow_special=False), media.image_start]
            images.append(range(len(token_ids), len(token_ids) + segment.num_tokens))
            token_ids += [media.image] * segment.num_tokens + [media.image_end]
        text = ""
    token_ids += tokenizer.encode(text, allow_special=False)
    return TextPrompt(tuple(token_ids), tuple(images))


def detect_variant(directory: Path) -> Variant:
    """The variant of the chat template among the files of `directory`; PT if there is none.

    ModelUnusable for a template that is there and cannot be read.
    """
    texts = [json.dumps(read_object_if_there(directory / TOKENIZER_CONFIG_NAME).get("chat_template", ""))]
    for name in _CHAT_TEMPLATE_NAMES:
        path = directory / name
        if os.path.lexists(path):
            texts.append(_read_template(path))
    return "thinking" if any(mark in text for mark in _THINKING_MARKS for text in texts) else "pt"


def _read_template(path: Path) -> str:
    try:
        return read_plain(path, _MAX_TEMPLATE_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise ModelUnusable(
            f"the chat template {path} cannot be read",
            error.strerror or str(error),
            "check its permissions, or fetch the model's files again",
        ) from error


def check_variant(variant: str) -> Variant:
    """`variant`, if there is such a template; else UsageError."""
    for known in _VARIANTS:
        if variant == known:
            return known
    raise UsageError(
        f"{parameter('variant')} {variant!r} is not a chat template",
        f"the templates are {' and '.join(_VARIANTS)}",
        f"leave out {parameter('variant')}: the model's files say which one is right",
    )


def _user_turn(message: Message, image_numbers: Iterator[int]) -> list[Segment]:
    parts: list[Segment] = []
    for part in message.parts:
        if isinstance(part, ImageSlot):
            parts.append(f"Picture {next(image_numbers)}:")
        parts.append(part)
    if message.role == "tool":
        return ["User: \n", Tag("<tool_output>"), "\n", *parts, "\n", Tag("</tool_output>"), "\n"]
    return ["User: ", *parts]
