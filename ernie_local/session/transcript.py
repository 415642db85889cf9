"""Saves a chat in a JSON file, and reads it again with every part of it checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar, get_args

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import read_plain, written_whole
from ernie_local.media.detail import with_image_tokens
from ernie_local.media.image_view import CropBox
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model_files import ModelFiles
from ernie_local.session.image import ChatImage, open_same_image
from ernie_local.session.messages import ChatMessage, ChatTurn, FinishReason, MessagePart
from ernie_local.strict_json import show
from ernie_local.text.reasoning import ToolCall
from ernie_local.text.template import Role

FORMAT_NAME = "ernie-local chat"
FORMAT_VERSION = 3  # 2: no image was cut or bounded; 1: a turn asked with one text after its images
MAX_CHAT_BYTES = 64 << 20

_Value = TypeVar("_Value")
_OpenImage: TypeAlias = Callable[[dict[str, object]], ChatImage]
_ROLES: tuple[Role, ...] = get_args(Role)
_FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)


@dataclass(frozen=True, slots=True)
class SavedChat:
    """What a file of a chat holds. system: where no message says it."""

    system: str | None
    tools: tuple[Mapping[str, object], ...]
    turns: tuple[ChatTurn, ...]

    @property
    def images(self) -> list[ChatImage]:
        """Those of all turns, in their order."""
        return [image for turn in self.turns for image in turn.images]


def write_chat(path: Path, chat: SavedChat, model_name: str) -> None:
    """Write a chat to `path`, whole or not at all; images by their paths.

    UsageError for an image that has no path, ErnieLocalError where the file cannot be written.
    """
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "model": model_name,
        "system": chat.system,
        "tools": list(chat.tools),
        "turns": [_turn_to_json(number, turn) for number, turn in enumerate(chat.turns, start=1)],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with written_whole(path, f"the chat of {len(text)} characters") as file:
        file.write(text.encode())


def read_saved_chat(
    path: str | os.PathLike[str], files: ModelFiles, password: str | None = None
) -> SavedChat:
    """The chat in `path` for the model of `files`, with its images opened, encrypted PDFs by `password`.

    InputUnreadable where the file, or an image that it names, is missing, broken, of another version, or
    another by now.
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
        open_image = partial(_image_from_json, processor=files.image_processor, password=password)
        turns = tuple(_turn_from_json(entry, open_image) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, f"a part of it is missing or wrong: {error}") from error
    return SavedChat(system, tools, turns)


def _turn_to_json(number: int, turn: ChatTurn) -> dict[str, object]:
    return {
        "question": [
            {"role": message.role, "content": [_part_to_json(number, part) for part in message.parts]}
            for message in turn.question
        ],
        "thinking": turn.thinking,
        "reasoning": turn.reasoning,
        "answer": turn.answer,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in turn.tool_calls],
        "finish_reason": turn.finish_reason,
    }


def _part_to_json(number: int, part: MessagePart) -> object:
    """A text as it is, an image as its path and size, with what was cut and the bound of its tokens."""
    if isinstance(part, str):
        return part
    assert isinstance(part, ChatImage), "a turn holds opened images"
    if part.path is None:
        raise UsageError(
            f"turn {number} of the chat has an image without a path ({part.name})",
            "a saved chat names its images by their files, and this one came from memory or a pipe",
            "save the image as a file and ask about that file",
        )
    entry: dict[str, object] = {"path": part.path, "size": list(part.report.original_size)}
    if part.report.crop is not None:
        entry["crop"] = list(part.report.crop)
    if part.report.max_tokens is not None:
        entry["max_tokens"] = part.report.max_tokens
    return entry


def _image_from_json(
    entry: dict[str, object], processor: ImageProcessorConfig, password: str | None
) -> ChatImage:
    width, height = (_expect(value, int) for value in _expect(entry["size"], list))
    crop: CropBox | None = None
    if "crop" in entry:
        left, top, right, bottom = (_expect(value, int) for value in _expect(entry["crop"], list))
        crop = left, top, right, bottom
    if "max_tokens" in entry:
        try:
            processor = with_image_tokens(processor, _expect(entry["max_tokens"], int))
        except UsageError as error:
            raise ValueError(error.what) from error
    return open_same_image(_expect(entry["path"], str), (width, height), processor, password, crop)


def _turn_from_json(turn: dict[str, object], open_image: _OpenImage) -> ChatTurn:
    if "question" in turn:
        entries = [_expect(message, dict) for message in _expect(turn["question"], list)]
    else:  # version 1
        entries = [{"role": turn["role"], "content": [*_expect(turn["images"], list), turn["text"]]}]
    calls = [_expect(call, dict) for call in _expect(turn["tool_calls"], list)]
    return ChatTurn(
        question=tuple(_message_from_json(entry, open_image) for entry in entries),
        thinking=_expect(turn["thinking"], bool),
        reasoning=_expect(turn["reasoning"], str),
        answer=_expect(turn["answer"], str),
        tool_calls=tuple(
            ToolCall(_expect(call["name"], str), _expect(call["arguments"], dict)) for call in calls
        ),
        finish_reason=_one_of(_FINISH_REASONS, turn["finish_reason"]),
    )


def _message_from_json(message: dict[str, object], open_image: _OpenImage) -> ChatMessage:
    content = _expect(message["content"], list)
    parts = tuple(part if isinstance(part, str) else open_image(_expect(part, dict)) for part in content)
    return ChatMessage(_one_of(_ROLES, message["role"]), parts)


def _expect(value: object, kind: type[_Value]) -> _Value:
    if not isinstance(value, kind):
        raise TypeError(f"{show(value)} where a {kind.__name__} belongs")
    return value


def _one_of(known: tuple[_Value, ...], value: object) -> _Value:
    if value not in known:
        raise ValueError(f"{show(value)} where one of {known} belongs")
    return known[known.index(value)]


def _unreadable(path: Path, why: str) -> InputUnreadable:
    return InputUnreadable(
        f"cannot read the chat in {path}", why, "give a file that /save or Chat.save has written"
    )
