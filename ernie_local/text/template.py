"""Writes a conversation down as token ids, by the chat template of the PT or the Thinking checkpoints.

Only the template writes tags, never a user. An image is a number of tokens here. A finished turn is always
written the same way, so the ids of a longer conversation begin with those of a shorter one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ernie_local.config import MediaTokens
from ernie_local.errors import ModelUnusable, UsageError, parameter
from ernie_local.text.added_tokens import TOKENIZER_CONFIG_NAME, read_object_if_there
from ernie_local.text.reasoning import (
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_CALL_CLOSE,
    TOOL_CALL_OPEN,
    ToolCall,
)
from ernie_local.text.tokenizer import ErnieTokenizer

Variant = Literal["pt", "thinking"]
Role = Literal["system", "user", "assistant", "tool"]
_VARIANTS: tuple[Variant, ...] = get_args(Variant)

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
IMAGE_START = "<|IMAGE_START|>"
END_TOKENS = ("</s>", END)

THINKING_SYSTEM = (
    "You are a multimodal AI assistant called ERNIE developed by Baidu based on the PaddlePaddle framework."
)
# The PT template has no tools: each of these words stands in the Thinking template alone.
_THINKING_MARKS = ("tool_list", "tool_output", "tool_call", THINKING_SYSTEM)
_CHAT_TEMPLATE_NAMES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag that the template writes; one that the vocabulary lacks is text, unless it is `required`."""

    text: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of one image."""

    num_tokens: int


Segment = str | Tag | ImageSlot


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: a text, or texts and the places of images in their order.

    Only users and tools show images. reasoning and tool_calls: of an assistant.
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
    """A user's question with images before it; image_tokens: tokens that each of them fills."""
    return Message("user", (*map(ImageSlot, image_tokens), text))


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where the placeholders of one image stand among the ids: [start, end)."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Token ids with every placeholder in its place; `images` in the order of the images."""

    token_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...]

    @property
    def num_image_tokens(self) -> int:
        """Placeholders of all images."""
        return sum(span.end - span.start for span in self.images)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One of the two published ways to write a conversation down."""

    variant: Variant

    @property
    def thinks_by_default(self) -> bool:
        """Whether this checkpoint was made to reason before it answers."""
        return self.variant == "thinking"

    def segments(
        self,
        messages: Sequence[Message],
        system: str | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        thinking: bool | None = None,
    ) -> list[Segment]:
        """The conversation; with `thinking` true or false also the opening of the assistant's next turn.

        system: None is the variant's own (none for PT), "" is none; a system message at the start goes before
        it. UsageError for tools or tool results with PT, which was not trained on them.
        """
        if self.variant == "pt" and (tools or any(message.role == "tool" for message in messages)):
            raise UsageError(
                f"{len(tools)} tools for a chat template without tools",
                "only the Thinking checkpoint was trained to call tools",
                "leave out the tools, or load a Thinking checkpoint",
            )
        if messages and messages[0].role == "system":
            system, messages = messages[0].text, messages[1:]
        segments = self._opening(system, tools)
        num_images = 0
        for message in messages:
            if message.role == "assistant":
                segments += self._assistant_turn(message)
            elif message.role == "system":
                segments.append(f"{message.text}\n")
            else:
                segments += _user_turn(message, num_images)
                num_images += sum(isinstance(part, ImageSlot) for part in message.parts)
        if thinking is not None:
            segments += self._assistant_opening(thinking)
        return segments

    def forced_close(self) -> list[Segment]:
        """What ends a thought from outside, so that the answer comes next."""
        return ["\n", Tag(THINK_CLOSE), "\n\n"]

    def _opening(self, system: str | None, tools: Sequence[Mapping[str, object]]) -> list[Segment]:
        segments: list[Segment] = [Tag(BEGIN, required=True)]
        if tools:
            listed = json.dumps(list(tools), ensure_ascii=False)
            segments += ["\n", Tag("<tool_list>"), f"\n{listed}\n", Tag("</tool_list>"), "\n"]
        if system is None:
            system = THINKING_SYSTEM if self.variant == "thinking" else ""
        if system:
            segments.append(f"{system}\n")
        return segments

    def _assistant_opening(self, thinking: bool) -> list[Segment]:
        if self.variant == "thinking":
            before, after_open, closed = "\nAssistant: \n", "\n", "\n\n"
        else:
            before, after_open, closed = "\nAssistant: ", "", "\n\n"
        if thinking:
            return [before, Tag(THINK_OPEN), after_open]
        return [before, Tag(THINK_OPEN), closed, Tag(THINK_CLOSE), "\n\n"]

    def _assistant_turn(self, message: Message) -> list[Segment]:
        reasoning, answer = message.reasoning.strip("\n"), message.text.lstrip("\n")
        if self.variant == "thinking":
            # An empty thought is written out too: it is what the model was trained on.
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
    """Ids of the segments. Neighbouring texts are encoded as one, as if the conversation were one string.

    The ids around and inside an image are those of the config, as the model goes by them.
    ModelUnusable where the vocabulary lacks a token without which no conversation can be written.
    """
    token_ids: list[int] = []
    images: list[ImageSpan] = []
    text = ""
    for segment in segments:
        if isinstance(segment, str):
            text += segment
            continue
        if isinstance(segment, Tag):
            tag_id = tokenizer.id_of(segment.text)
            if tag_id is None:
                if segment.required:
                    raise _missing_token(tokenizer, segment.text)
                text += segment.text
                continue
            token_ids += [*tokenizer.encode(text, allow_special=False), tag_id]
        else:
            token_ids += [*tokenizer.encode(text, allow_special=False), media.image_start]
            images.append(ImageSpan(len(token_ids), len(token_ids) + segment.num_tokens))
            token_ids += [media.image] * segment.num_tokens + [media.image_end]
        text = ""
    token_ids += tokenizer.encode(text, allow_special=False)
    return TextPrompt(tuple(token_ids), tuple(images))


def detect_variant(directory: Path) -> Variant:
    """The variant of the model in `directory`, by the chat template in its files; PT where there is none."""
    texts = [json.dumps(read_object_if_there(directory / TOKENIZER_CONFIG_NAME).get("chat_template", ""))]
    for name in _CHAT_TEMPLATE_NAMES:
        path = directory / name
        if path.is_file():
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return "thinking" if any(mark in text for mark in _THINKING_MARKS for text in texts) else "pt"


def check_variant(variant: str) -> Variant:
    """`variant` if there is such a template, else UsageError."""
    for known in _VARIANTS:
        if variant == known:
            return known
    raise UsageError(
        f"{parameter('variant')} {variant!r} is not a chat template",
        f"the templates are {' and '.join(_VARIANTS)}",
        f"leave out {parameter('variant')}: the model's files say which one is right",
    )


def _user_turn(message: Message, num_images_before: int) -> list[Segment]:
    parts: list[Segment] = []
    number = num_images_before
    for part in message.parts:
        if isinstance(part, ImageSlot):
            number += 1
            parts.append(f"Picture {number}:")
        parts.append(part)
    if message.role == "tool":
        return ["User: \n", Tag("<tool_output>"), "\n", *parts, "\n", Tag("</tool_output>"), "\n"]
    return ["User: ", *parts]


def _missing_token(tokenizer: ErnieTokenizer, token: str) -> ModelUnusable:
    return ModelUnusable(
        f"the tokenizer has no token {token}",
        f"none of its {tokenizer.vocab_size} tokens is written so, and every conversation needs it",
        "use tokenizer.model and tokenizer_config.json of the model's original repository",
    )
