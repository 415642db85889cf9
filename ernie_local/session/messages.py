"""Defines what is said in a chat: messages with text and images in any order, and turns of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast, get_args

from PIL import Image

from ernie_local.errors import UsageError, parameter
from ernie_local.media.open_image import OpenedImage
from ernie_local.media.open_video import OpenedVideo
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.progress import Pause
from ernie_local.session.image import ChatImage, ChatImageSource, ImagePart, open_each
from ernie_local.session.video import ChatVideo, ChatVideoSource, VideoPart, open_chat_video
from ernie_local.text.reasoning import ToolCall
from ernie_local.text.template import ImageSlot, Message, Role, VideoSlot

# stop: the model ended the answer; length: max_tokens or the context did; interrupted: someone stopped it.
FinishReason = Literal["stop", "length", "interrupted"]
# A str is text here, and never the path of an image.
MessagePart: TypeAlias = "ChatImageSource | VideoPart | OpenedVideo | ChatVideo"
ChatMedia: TypeAlias = ChatImage | ChatVideo
_VIDEOS = (VideoPart, OpenedVideo, ChatVideo)
_ROLES_WITH_IMAGES = ("user", "tool")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat.

    role: system, user, assistant, or tool (what a called tool gave). content: a text, or texts, images and
    videos in their order: a str is text, a VideoPart a video, anything else an image as `open_images` takes
    it, such as a Path, bytes or a PIL image, or an ImagePart. reasoning and tool_calls: what an assistant
    thought before its text, and called after it. UsageError for an unknown role, and for images and videos of
    a system or an assistant.
    """

    role: Role
    content: str | Sequence[MessagePart]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise UsageError(
                f"a message of the role {self.role!r}",
                f"a message comes from {', '.join(get_args(Role))}",
                'ChatMessage("user", "What is the total?")',
            )
        num_videos = sum(isinstance(part, _VIDEOS) for part in self.parts)
        num_images = sum(not isinstance(part, str) for part in self.parts) - num_videos
        if num_images + num_videos and self.role not in _ROLES_WITH_IMAGES:
            raise UsageError(
                f"a message from {self.role} with {num_images} images and {num_videos} videos",
                f"only messages from {' and '.join(_ROLES_WITH_IMAGES)} show any",
                "move them to a message from user",
            )

    @property
    def parts(self) -> tuple[MessagePart, ...]:
        """Its texts and images."""
        return (self.content,) if isinstance(self.content, str) else tuple(self.content)

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[ChatImage, ...]:
        """Its images, as far as they have been opened."""
        return tuple(part for part in self.parts if isinstance(part, ChatImage))

    @property
    def media(self) -> tuple[ChatMedia, ...]:
        """Its images and videos, as far as they have been opened."""
        return tuple(part for part in self.parts if isinstance(part, ChatImage | ChatVideo))

    @property
    def has_videos(self) -> bool:
        """Whether a part of it is a video, opened or not."""
        return any(isinstance(part, _VIDEOS) for part in self.parts)

    def opened(
        self,
        processor: ImageProcessorConfig,
        context_size: int | None = None,
        video_processor: ImageProcessorConfig | None = None,
        most_tokens: int | None = None,
        pause: Pause | None = None,
    ) -> ChatMessage:
        """The same with its images and videos opened, each page of a document an image.

        context_size and errors as of `open_chat_images` and `open_video`. video_processor: of a model, None
        where no part is a video. most_tokens: that there is room for; images that have taken it leave none
        for a video. pause: as of `open_video`.
        """
        sources = [part for part in self.parts if not isinstance(part, (str, *_VIDEOS))]
        images = open_each(cast("list[ChatImageSource]", sources), processor, context_size)
        if most_tokens is not None:
            most_tokens -= sum(image.num_tokens for group in images for image in group)
        opened, parts = iter(images), list[MessagePart]()
        for part in self.parts:
            if isinstance(part, _VIDEOS):
                assert video_processor is not None, "whoever opens videos says how"
                video = open_chat_video(part, video_processor, most_tokens, pause)
                most_tokens = None if most_tokens is None else most_tokens - video.num_tokens
                parts.append(video)
            else:
                parts.extend([part] if isinstance(part, str) else next(opened))
        return replace(self, content=tuple(parts))

    def for_template(self) -> Message:
        """As the chat template takes it; its images have been opened."""
        parts: list[str | ImageSlot | VideoSlot] = []
        for part in self.parts:
            assert isinstance(part, str | ChatImage | ChatVideo), "only opened messages are written down"
            slot = VideoSlot if isinstance(part, ChatVideo) else ImageSlot
            parts.append(part if isinstance(part, str) else slot(part.num_tokens))
        return Message(self.role, tuple(parts), self.reasoning, self.tool_calls)


@dataclass(frozen=True, slots=True)
class CallRound:
    """What a model wrote and called on the way to its answer, and what the tools gave, a message each."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    results: tuple[ChatMessage, ...]

    def messages(self) -> tuple[ChatMessage, ...]:
        """As the prompt has them."""
        return (ChatMessage("assistant", self.text, self.reasoning, self.tool_calls), *self.results)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """What was said since the answer before, with images opened, and the answer.

    thinking: whether the model was to think before it. rounds: of calls that the chat ran for it. tool_calls:
    those of the answer itself, which whoever asked runs.
    """

    question: tuple[ChatMessage, ...]
    answer: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: bool = False
    finish_reason: FinishReason = "stop"
    rounds: tuple[CallRound, ...] = ()

    @property
    def text(self) -> str:
        """The text of the question, without system texts."""
        return "\n".join(message.text for message in self.question if message.role != "system")

    @property
    def images(self) -> tuple[ChatImage, ...]:
        """The images of the question, and those that tools gave."""
        return images_of(self.messages())

    @property
    def media(self) -> tuple[ChatMedia, ...]:
        """The images and videos of the question, and what tools gave of them."""
        return media_of(self.messages())

    def messages(self) -> tuple[ChatMessage, ...]:
        """The question, the rounds, and the answer."""
        answer = ChatMessage("assistant", self.answer, self.reasoning, self.tool_calls)
        return (*self.question, *messages_of(self.rounds), answer)


def messages_of(rounds: Iterable[CallRound]) -> list[ChatMessage]:
    """All messages of the rounds, in order."""
    return [message for one in rounds for message in one.messages()]


def images_of(messages: Iterable[ChatMessage]) -> tuple[ChatImage, ...]:
    """All opened images in the order of their places in the prompt."""
    return tuple(image for message in messages for image in message.images)


def media_of(messages: Iterable[ChatMessage]) -> tuple[ChatMedia, ...]:
    """All opened images and videos in the order of their places in the prompt."""
    return tuple(one for message in messages for one in message.media)


def asked_message(
    role: Role,
    content: str | Sequence[MessagePart],
    images: Iterable[ChatImageSource] | ChatImageSource,
    videos: Iterable[ChatVideoSource] | ChatVideoSource,
) -> ChatMessage:
    """A message of images, then videos, then `content`; UsageError where `content` says nothing.

    A str among images and videos is a path.
    """
    message = ChatMessage(role, content)
    check_question([message])
    before: list[MessagePart] = [
        ImagePart(one) if isinstance(one, str) else one for one in as_sources(images)
    ]
    is_one = isinstance(videos, str | bytes | os.PathLike | VideoPart | OpenedVideo | ChatVideo)
    several = cast("Iterable[ChatVideoSource]", [videos] if is_one else videos)
    before += [video if isinstance(video, _VIDEOS) else VideoPart(video) for video in several]
    return replace(message, content=(*before, *message.parts))


def split_turns(messages: Sequence[ChatMessage]) -> tuple[tuple[ChatTurn, ...], tuple[ChatMessage, ...]]:
    """The finished turns of a conversation, and the messages after the last answer.

    UsageError where there are none, or where they say nothing.
    """
    turns: list[ChatTurn] = []
    question: list[ChatMessage] = []
    for message in messages:
        if message.role != "assistant":
            question.append(message)
            continue
        has_thought = bool(message.reasoning)
        turns.append(
            ChatTurn(tuple(question), message.text, message.reasoning, message.tool_calls, has_thought)
        )
        question = []
    check_question(question)
    return tuple(turns), tuple(question)


def split_begun(messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], ChatMessage | None]:
    """The messages before an answer that is to go on, and that answer; None where the last one is none.

    UsageError for a call of a tool, which ends an answer.
    """
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or not (last.text or last.reasoning or last.tool_calls):
        return messages, None
    if last.tool_calls:
        raise UsageError(
            f"the last message is an answer with {len(last.tool_calls)} calls of tools",
            "a call ends an answer; what comes next is what the tool gave",
            'a last message such as ChatMessage("tool", "42")',
        )
    return messages[:-1], last


def check_begun(begun: ChatMessage, thinking: bool | None, *, has_form: bool) -> None:
    """Raise UsageError unless this answer can go on. thinking: as it was asked for."""
    if has_form:
        raise UsageError(
            f"an answer in a form with {len(begun.text)} characters of it given",
            "a form holds an answer from its first letter on",
            "leave out the form, or the last message",
        )
    if thinking is True and not begun.reasoning:
        raise UsageError(
            f"{parameter('thinking')} before an answer of which {len(begun.text)} characters are given",
            "a thought comes before the first letter of its answer",
            "give the reasoning with the last message, or ask for no thinking",
        )
    if thinking is False and not begun.text:
        raise UsageError(
            f"no {parameter('thinking')}, and {len(begun.reasoning)} characters of a thought to go on with",
            "the last message has reasoning and no text",
            "give its text, or ask for thinking",
        )


def with_instruction(messages: Sequence[ChatMessage], instruction: str) -> list[ChatMessage]:
    """The messages with an instruction behind the last one of the user, if any."""
    told = list(messages)
    for index in reversed(range(len(told) if instruction else 0)):
        if told[index].role == "user":
            told[index] = replace(told[index], content=(*told[index].parts, f"\n{instruction}"))
            break
    return told


def check_question(messages: Sequence[ChatMessage]) -> None:
    """Raise UsageError unless a user or a tool says something."""
    asked = [message for message in messages if message.role in _ROLES_WITH_IMAGES]
    if not any(
        message.text.strip() or any(not isinstance(part, str) for part in message.parts) for message in asked
    ):
        num_characters = sum(len(message.text) for message in asked)
        raise UsageError(
            f"a question of {num_characters} characters in {len(asked)} messages from "
            f"{' or '.join(_ROLES_WITH_IMAGES)}",
            "the last message must come from one of them, and say something",
            'ask("What is the total?", images=["invoice.png"])',
        )


def as_sources(images: Iterable[ChatImageSource] | ChatImageSource) -> Iterable[ChatImageSource]:
    """Several images, or one alone, as several: a string is a sequence of strings, an array one of arrays."""
    is_one = isinstance(images, str | bytes | os.PathLike | OpenedImage | ImagePart | ChatImage | Image.Image)
    if is_one or hasattr(images, "__array__"):
        return [cast("ChatImageSource", images)]
    return cast("Iterable[ChatImageSource]", images)
