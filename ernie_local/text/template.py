"""Writes a conversation as segments, by one of the published chat templates, and as ids.

Only the template writes tags, never a user. A finished turn is always written the same way, so the ids of a
longer conversation begin with those of a shorter one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ernie_local.config import MediaTokens, image_refusal
from ernie_local.errors import ModelUnusable, UsageError, parameter
from ernie_local.text.reasoning import THINK_CLOSE, THINK_OPEN, TOOL_CALL_CLOSE, TOOL_CALL_OPEN, ToolCall
from ernie_local.text.tokenizer import ErnieTokenizer

Variant = Literal["pt", "thinking", "text"]
Role = Literal["system", "user", "assistant", "tool"]
# Whether the model is to think. "free": neither asked for nor forbidden, the model decides.
Thinking: TypeAlias = bool | Literal["free"]
# Where a prompt ends: inside a thought, behind one that the template has closed, or without any.
ThoughtState = Literal["open", "closed", "none"]
_VARIANTS: tuple[Variant, ...] = get_args(Variant)

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
IMAGE_START, IMAGE_END = "<|IMAGE_START|>", "<|IMAGE_END|>"
VIDEO_START, VIDEO_END = "<|VIDEO_START|>", "<|VIDEO_END|>"
IMAGE_PLACEHOLDER = "<|IMAGE_PLACEHOLDER|>"
END_TOKENS = ("</s>", END, "<|im_end|>")  # the last one of 21B-A3B-Thinking

THINKING_SYSTEM = (
    "You are a multimodal AI assistant called ERNIE developed by Baidu based on the PaddlePaddle framework."
)


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the template. One that the vocabulary lacks is encoded as text, unless it is `required`."""

    text: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of one image."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class VideoSlot:
    """The place of one video."""

    num_tokens: int


Segment = str | Tag | ImageSlot | VideoSlot


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: a text, or texts and the places of images and videos in their order.

    Only users and tools have images, only assistants reasoning and tool_calls.
    """

    role: Role
    content: str | tuple[str | ImageSlot | VideoSlot, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def parts(self) -> tuple[str | ImageSlot | VideoSlot, ...]:
        """Its texts, images and videos."""
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
    """Token ids, where the placeholders of each image and video are among them, and how the prompt ends."""

    token_ids: tuple[int, ...]
    images: tuple[range, ...] = ()
    videos: tuple[range, ...] = ()
    thought: ThoughtState = "none"

    @property
    def num_image_tokens(self) -> int:
        """Placeholders of all images."""
        return sum(map(len, self.images))

    @property
    def num_video_tokens(self) -> int:
        """Placeholders of all videos."""
        return sum(map(len, self.videos))

    @property
    def media(self) -> tuple[range, ...]:
        """Where the placeholders of images and videos are, in the order of the prompt."""
        return tuple(sorted((*self.images, *self.videos), key=lambda span: span.start))


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One of the published chat templates: PT and Thinking of models with a tower, and "text" of those that
    read only text, which has no thoughts.

    Its sources disagree in places; each such choice is a field. tools: whether they stand before or after the
    system text. results: whether the output of a tool begins a line of its own, or follows "User: ". labels:
    whether a space stands before "Picture 1:". thinks: what happens where nobody says whether to think.
    """

    variant: Variant
    tools: Literal["before", "after"] = "before"
    results: Literal["own-line", "same-line"] = "own-line"
    labels: Literal["spaced", "plain"] | None = None  # None: spaced for Thinking, plain for PT
    thinks: Literal["on", "off", "free"] | None = None  # None: on for Thinking, off for PT

    @property
    def thinks_by_default(self) -> Thinking:
        """Whether it thinks where nobody says so."""
        if self.thinks is None:
            return self.variant == "thinking"
        return "free" if self.thinks == "free" else self.thinks == "on"

    def segments(
        self,
        messages: Sequence[Message],
        system: str | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        thinking: Thinking | None = None,
    ) -> list[Segment]:
        """The conversation, and the beginning of the assistant's next turn unless `thinking` is None.

        system: None is the variant's own text (PT has none), "" is none. A system message at the start is
        used instead. UsageError for tools or tool results without Thinking, as only that was trained on them,
        and for thoughts with "text".
        """
        if self.variant != "thinking" and (tools or any(message.role == "tool" for message in messages)):
            raise UsageError(
                f"{'tools' if tools else 'the result of a tool'} for a chat template without tools",
                "only the Thinking checkpoint was trained to call tools",
                "leave out the tools, or load a Thinking checkpoint",
            )
        if messages and messages[0].role == "system":
            system, messages = messages[0].text, messages[1:]
        if self.variant == "text":
            return _lines(messages, system, thinking)
        if system is None:
            system = THINKING_SYSTEM if self.variant == "thinking" else ""
        segments: list[Segment] = [Tag(BEGIN, required=True), *self._opening(system, tools)]
        counts = {"Picture": 0, "Video": 0}
        for message in messages:
            if message.role == "assistant":
                segments += self._assistant_turn(message)
            elif message.role == "system":
                segments.append(f"{message.text}\n")
            else:
                segments += self._user_turn(message, counts)
        if thinking is not None:
            segments += self._answer_opening(thinking)
        return segments

    def forced_close(self) -> list[Segment]:
        """What ends the reasoning from outside, so that the answer comes next."""
        return ["\n", Tag(THINK_CLOSE), "\n\n"]

    def _opening(self, system: str, tools: Sequence[Mapping[str, object]]) -> list[Segment]:
        """System text and tools."""
        text: list[Segment] = [f"{system}\n"] if system else []
        if not tools:
            return text
        listed = json.dumps(list(tools), ensure_ascii=False)
        tool_list: list[Segment] = ["\n", Tag("<tool_list>"), f"\n{listed}\n", Tag("</tool_list>"), "\n"]
        # After the system text, they are the end of it: its line break comes behind them.
        return [*tool_list, *text] if self.tools == "before" else [system, *tool_list, "\n"]

    def _answer_opening(self, thinking: Thinking) -> list[Segment]:
        newline = "\n" if self.variant == "thinking" else ""
        opening = f"\nAssistant: {newline}"
        if thinking == "free":
            return [opening]
        thought: list[Segment] = [newline] if thinking else ["\n\n", Tag(THINK_CLOSE), "\n\n"]
        return [opening, Tag(THINK_OPEN), *thought]

    def _user_turn(self, message: Message, counts: dict[str, int]) -> list[Segment]:
        """counts: how many pictures and videos have been numbered; grows."""
        is_spaced = self.variant == "thinking" if self.labels is None else self.labels == "spaced"
        parts: list[Segment] = []
        for part in message.parts:
            if not isinstance(part, str):
                kind = "Picture" if isinstance(part, ImageSlot) else "Video"
                counts[kind] += 1
                parts.append(f"{' ' if is_spaced else ''}{kind} {counts[kind]}:")
            parts.append(part)
        if message.role == "user":
            return ["User: ", *parts]
        opening = "User: \n" if self.results == "own-line" else "User: "
        return [opening, Tag("<tool_output>"), "\n", *parts, "\n", Tag("</tool_output>"), "\n"]

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


def _lines(messages: Sequence[Message], system: str | None, thinking: Thinking | None) -> list[Segment]:
    """A line for each user, and one for each answer, which its end token closes in place of a line break."""
    if thinking is True:
        raise UsageError(
            f"a thought before the answer, and {len(messages)} messages for a chat template without thoughts",
            "this model was trained to answer at once",
            "no thinking, or a Thinking checkpoint",
        )
    segments: list[Segment] = [Tag(BEGIN, required=True), *([f"{system}\n"] if system else [])]
    for message in messages:
        if message.role == "assistant":
            segments += ["Assistant: ", message.text, Tag(END, required=True)]
        else:
            segments += ["User: "] * (message.role == "user") + [*message.parts, "\n"]
    return segments if thinking is None else [*segments, "Assistant: "]


def encode_segments(
    tokenizer: ErnieTokenizer, segments: Iterable[Segment], media: MediaTokens | None
) -> TextPrompt:
    """Ids of the segments. Neighbouring texts are encoded together, as in one string.

    media: the ids of tags and placeholders of images and videos; None for a model that reads only text.
    ModelUnusable if the vocabulary lacks a required tag, UsageError for an image in text alone.
    """
    token_ids: list[int] = []
    images: list[range] = []
    videos: list[range] = []
    thought: ThoughtState = "none"
    text = ""
    for segment in segments:
        if isinstance(segment, str):
            text += segment
            continue
        if isinstance(segment, Tag):
            thought = _THOUGHT_STATES.get(segment.text, thought)
            tag_id = tokenizer.id_of(segment.text)
            if tag_id is None:
                if segment.required:
                    raise _no_such_token(segment, tokenizer)
                text += segment.text
                continue
            token_ids += [*tokenizer.encode(text, allow_special=False), tag_id]
        else:
            if media is None:
                raise image_refusal()
            is_image = isinstance(segment, ImageSlot)
            start, placeholder, end = (
                (media.image_start, media.image, media.image_end)
                if is_image
                else (media.video_start, media.video, media.video_end)
            )
            token_ids += [*tokenizer.encode(text, allow_special=False), start]
            span = range(len(token_ids), len(token_ids) + segment.num_tokens)
            (images if is_image else videos).append(span)
            token_ids += [placeholder] * segment.num_tokens + [end]
        text = ""
    token_ids += tokenizer.encode(text, allow_special=False)
    return TextPrompt(tuple(token_ids), tuple(images), tuple(videos), thought)


# A new turn has no thought yet.
_THOUGHT_STATES: Mapping[str, ThoughtState] = {
    THINK_OPEN: "open", THINK_CLOSE: "closed", BEGIN: "none", END: "none",
}  # fmt: skip


def _no_such_token(tag: Tag, tokenizer: ErnieTokenizer) -> ModelUnusable:
    return ModelUnusable(
        f"the tokenizer has no token {tag.text}",
        f"none of its {tokenizer.vocab_size} tokens is written so, and every conversation needs it",
        "use tokenizer.model and tokenizer_config.json of the model's original repository",
    )


def parse_template(text: str) -> ChatTemplate:
    """The template that `text` names: a Variant, then its choices, as in "thinking,tools=after".

    UsageError names what is known where a name or a choice is not.
    """
    name, *settings = (part.strip() for part in text.split(","))
    if name not in _VARIANTS:
        raise UsageError(
            f"{parameter('variant')} {name!r} is not a chat template",
            f"the templates are {', '.join(_VARIANTS)}, and file: the one among the model's files",
            f"leave out {parameter('variant')}: the model's files say which one is right",
        )
    chosen: dict[str, str] = {}
    for setting in settings:
        field, _, value = setting.partition("=")
        if value not in TEMPLATE_CHOICES.get(field, ()) or field in chosen:
            known = "; ".join(f"{one}={'|'.join(values)}" for one, values in TEMPLATE_CHOICES.items())
            raise UsageError(
                f"{parameter('variant')} {text!r}: {setting!r} is not a choice, or stands there twice",
                f"the choices are {known}",
                f"{parameter('variant', 'thinking,tools=after')}",
            )
        chosen[field] = value
    if name == "text" and chosen:
        raise UsageError(
            f"{parameter('variant')} {text!r} has {len(chosen)} choices, and the template text has none",
            "its sources agree on every byte",
            f"{parameter('variant', 'text')}",
        )
    return ChatTemplate(name, **chosen)  # type: ignore[arg-type]


TEMPLATE_CHOICES: Mapping[str, tuple[str, ...]] = {
    "tools": ("before", "after"),
    "results": ("own-line", "same-line"),
    "labels": ("spaced", "plain"),
    "thinks": ("on", "off", "free"),
}
