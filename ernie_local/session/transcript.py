"""Saves a chat in a JSON file, and reads it again with every part of it checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar, get_args

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import read_plain, written_whole
from ernie_local.media.detail import with_image_tokens
from ernie_local.media.image_view import CropBox
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.video_sampling import VideoSampling
from ernie_local.model_files import ModelFiles
from ernie_local.session.image import ChatImage, ImageOrigin, open_same_image, open_zoomed
from ernie_local.session.image_tools import zoom_tool
from ernie_local.session.messages import (
    CallRound,
    ChatMedia,
    ChatMessage,
    ChatTurn,
    FinishReason,
    MessagePart,
)
from ernie_local.session.tools import Toolbox, ToolSource, described_name
from ernie_local.session.video import ChatVideo, open_same_video
from ernie_local.strict_json import show
from ernie_local.text.reasoning import ToolCall
from ernie_local.text.template import Role

FORMAT_NAME = "ernie-local chat"
# 3: no video, and no tool was run; 2: no image was cut or bounded; 1: one text after its images a turn.
FORMAT_VERSION = 4
MAX_CHAT_BYTES = 64 << 20
_LARGEST = 1e9  # side of a place in an image

_Value = TypeVar("_Value")
_OpenMedia: TypeAlias = Callable[[dict[str, object]], ChatMedia]
_ROLES: tuple[Role, ...] = get_args(Role)
_FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)


@dataclass(frozen=True, slots=True)
class SavedChat:
    """What a file of a chat holds. system: where no message says it. tools: described, as the file has them,
    or what the chat runs in their place."""

    system: str | None
    tools: tuple[ToolSource, ...]
    turns: tuple[ChatTurn, ...]

    @property
    def images(self) -> list[ChatImage]:
        """Those of all turns, in their order."""
        return [image for turn in self.turns for image in turn.images]

    @property
    def media(self) -> list[ChatMedia]:
        """Images and videos of all turns, in their order."""
        return [one for turn in self.turns for one in turn.media]

    def with_tools(self, tools: Sequence[ToolSource], zoom: bool = False) -> SavedChat:
        """The same with tools to run, in the places of those that the file describes by the same names.

        zoom: also `zoom_tool`, which a chat keeps that had it.
        """
        own = zoom_tool()
        names = {described_name(one) for one in Toolbox(tools).descriptions}
        is_kept = own.described() in self.tools and own.name not in names
        given = [*tools, *([own] if zoom or is_kept else [])]
        described = zip(Toolbox(given).descriptions, given, strict=True)
        named = {described_name(one): source for one, source in described}
        saved = [one for one in self.tools if isinstance(one, Mapping)]
        kept = [named.pop(described_name(one), one) for one in saved]
        return replace(self, tools=(*kept, *named.values()))


def write_chat(path: Path, chat: SavedChat, model_name: str) -> None:
    """Write a chat to `path`, whole or not at all; images and videos by their paths.

    UsageError for one that has no path, ErnieLocalError where the file cannot be written.
    """
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "model": model_name,
        "system": chat.system,
        "tools": list(Toolbox(chat.tools).descriptions),
        "turns": [_turn_to_json(number, turn) for number, turn in enumerate(chat.turns, start=1)],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with written_whole(path, f"the chat of {len(text)} characters") as file:
        file.write(text.encode())


def read_saved_chat(
    path: str | os.PathLike[str], files: ModelFiles, password: str | None = None
) -> SavedChat:
    """The chat in `path` for the model of `files`, images and videos opened, encrypted PDFs by `password`.

    InputUnreadable where the file, or an image or video that it names, is missing, broken, of another
    version, or another by now.
    """
    path = Path(path)
    try:
        content = json.loads(read_plain(path, MAX_CHAT_BYTES))
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise _unreadable(path, f'it lacks "format": "{FORMAT_NAME}"')
    version = content.get("version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise InputUnreadable(
            f"{path}: a chat of version {show(version)}, only 1 to {FORMAT_VERSION} can be read",
            "another version of ernie-local wrote it",
            "use that version, or start a new chat",
        )
    try:
        system = None if content["system"] is None else _expect(content["system"], str)
        tools = tuple(_expect(tool, dict) for tool in _expect(content["tools"], list))
        entries = [_expect(turn, dict) for turn in _expect(content["turns"], list)]
        open_media = partial(_media_from_json, files=files, password=password)
        turns = tuple(_turn_from_json(entry, open_media) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, f"a part of it is missing or wrong: {error}") from error
    return SavedChat(system, tools, turns)


def _turn_to_json(number: int, turn: ChatTurn) -> dict[str, object]:
    return {
        "question": _messages_to_json(number, turn.question),
        "rounds": [
            {
                "reasoning": one.reasoning,
                "text": one.text,
                "tool_calls": _calls_to_json(one.tool_calls),
                "results": _messages_to_json(number, one.results),
            }
            for one in turn.rounds
        ],
        "thinking": turn.thinking,
        "reasoning": turn.reasoning,
        "answer": turn.answer,
        "tool_calls": _calls_to_json(turn.tool_calls),
        "finish_reason": turn.finish_reason,
    }


def _messages_to_json(number: int, messages: Sequence[ChatMessage]) -> list[dict[str, object]]:
    return [
        {"role": message.role, "content": [_part_to_json(number, part) for part in message.parts]}
        for message in messages
    ]


def _calls_to_json(calls: Sequence[ToolCall]) -> list[dict[str, object]]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _part_to_json(number: int, part: MessagePart) -> object:
    """A text as it is, an image as its path and size, with what was cut and the bound of its tokens; a video
    as its path, size and frames, with how they were chosen."""
    if isinstance(part, str):
        return part
    assert isinstance(part, ChatImage | ChatVideo), "a turn holds opened images and videos"
    zoomed = part.origin if isinstance(part, ChatImage) else None
    path = part.path if zoomed is None else zoomed.path
    if path is None:
        kind = "an image" if isinstance(part, ChatImage) else "a video"
        raise UsageError(
            f"turn {number} of the chat has {kind} without a path ({part.name})",
            "a saved chat names its images and videos by their files, and this came from memory or a pipe",
            "save it as a file and ask about that file",
        )
    return _video_to_json(path, part) if isinstance(part, ChatVideo) else _image_to_json(path, part)


def _video_to_json(path: str, video: ChatVideo) -> dict[str, object]:
    report = video.report
    chosen = {
        "fps": report.wanted_fps,
        "num_chosen": report.wanted_frames,
        "start": report.start,
        "end": report.end,
    }
    return {
        "video": path,
        "size": list(report.original_size),
        "frames": report.num_frames,
        **{key: value for key, value in chosen.items() if value is not None},
    }


def _image_to_json(path: str, image: ChatImage) -> dict[str, object]:
    report, zoomed = image.report, image.origin
    entry: dict[str, object] = {"path": path}
    if zoomed is None:
        entry["size"] = list(report.original_size)
        if report.crop is not None:
            entry["crop"] = list(report.crop)
    else:
        entry |= {"original_size": list(image.view.original_size), "zoomed": list(zoomed.box)}
    if report.max_tokens is not None:
        entry["max_tokens"] = report.max_tokens
    return entry


def _media_from_json(entry: dict[str, object], files: ModelFiles, password: str | None) -> ChatMedia:
    if "video" in entry:
        return _video_from_json(entry, files)
    return _image_from_json(entry, files.image_processor, password)


def _video_from_json(entry: dict[str, object], files: ModelFiles) -> ChatVideo:
    width, height = (_expect(value, int) for value in _expect(entry["size"], list))
    fps, start, end = (None if key not in entry else _number(entry[key]) for key in ("fps", "start", "end"))
    frames = _expect(entry["num_chosen"], int) if "num_chosen" in entry else None
    try:
        sampling = VideoSampling(fps, frames, start=start, end=end)
    except UsageError as error:
        raise ValueError(error.what) from error
    num_frames, path = _expect(entry["frames"], int), _expect(entry["video"], str)
    return open_same_video(path, (width, height), num_frames, sampling, files.video_processor)


def _image_from_json(
    entry: dict[str, object], processor: ImageProcessorConfig, password: str | None
) -> ChatImage:
    path = _expect(entry["path"], str)
    if "max_tokens" in entry:
        try:
            processor = with_image_tokens(processor, _expect(entry["max_tokens"], int))
        except UsageError as error:
            raise ValueError(error.what) from error
    if "zoomed" in entry:
        left, top, right, bottom = _numbers(entry["zoomed"], 4)
        width, height = _numbers(entry["original_size"], 2)
        box = (left, top, right, bottom)
        if not (left < right and top < bottom):
            raise ValueError(f"{box} is no part of an image")
        return open_zoomed(ImageOrigin(path, box), (width, height), processor, password)
    width, height = (_expect(value, int) for value in _expect(entry["size"], list))
    crop: CropBox | None = None
    if "crop" in entry:
        left, top, right, bottom = (_expect(value, int) for value in _expect(entry["crop"], list))
        crop = left, top, right, bottom
    return open_same_image(path, (width, height), processor, password, crop)


def _numbers(value: object, count: int) -> list[float]:
    numbers = _expect(value, list)
    if len(numbers) != count or not all(type(one) in (int, float) and 0 <= one < _LARGEST for one in numbers):
        raise ValueError(f"{show(value)} where {count} numbers belong")
    return numbers


def _turn_from_json(turn: dict[str, object], open_media: _OpenMedia) -> ChatTurn:
    if "question" in turn:
        entries = [_expect(message, dict) for message in _expect(turn["question"], list)]
    else:  # version 1
        entries = [{"role": turn["role"], "content": [*_expect(turn["images"], list), turn["text"]]}]
    rounds = [_expect(one, dict) for one in _expect(turn.get("rounds", []), list)]
    return ChatTurn(
        question=tuple(_message_from_json(entry, open_media) for entry in entries),
        rounds=tuple(_round_from_json(one, open_media) for one in rounds),
        thinking=_expect(turn["thinking"], bool),
        reasoning=_expect(turn["reasoning"], str),
        answer=_expect(turn["answer"], str),
        tool_calls=_calls_from_json(turn["tool_calls"]),
        finish_reason=_one_of(_FINISH_REASONS, turn["finish_reason"]),
    )


def _round_from_json(one: dict[str, object], open_media: _OpenMedia) -> CallRound:
    results = [_expect(message, dict) for message in _expect(one["results"], list)]
    return CallRound(
        text=_expect(one["text"], str),
        reasoning=_expect(one["reasoning"], str),
        tool_calls=_calls_from_json(one["tool_calls"]),
        results=tuple(_message_from_json(message, open_media) for message in results),
    )


def _calls_from_json(value: object) -> tuple[ToolCall, ...]:
    calls = [_expect(call, dict) for call in _expect(value, list)]
    return tuple(ToolCall(_expect(call["name"], str), _expect(call["arguments"], dict)) for call in calls)


def _message_from_json(message: dict[str, object], open_media: _OpenMedia) -> ChatMessage:
    content = _expect(message["content"], list)
    parts = tuple(part if isinstance(part, str) else open_media(_expect(part, dict)) for part in content)
    return ChatMessage(_one_of(_ROLES, message["role"]), parts)


def _expect(value: object, kind: type[_Value]) -> _Value:
    if not isinstance(value, kind):
        raise TypeError(f"{show(value)} where a {kind.__name__} belongs")
    return value


def _number(value: object) -> float:
    return float(value) if isinstance(value, int) else _expect(value, float)


def _one_of(known: tuple[_Value, ...], value: object) -> _Value:
    if value not in known:
        raise ValueError(f"{show(value)} where one of {known} belongs")
    return known[known.index(value)]


def _unreadable(path: Path, why: str) -> InputUnreadable:
    return InputUnreadable(
        f"cannot read the chat in {path}", why, "give a file that /save or Chat.save has written"
    )
