"""The turns of a chat as plain values, and the JSON file that a chat is saved in.

Owns the format of that file and the check of what is read from it. Runs no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import written_whole
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model_files import ModelFiles
from ernie_local.session.answer import FinishReason
from ernie_local.session.image import ChatImage, open_same_image
from ernie_local.text.reasoning import ToolCall
from ernie_local.text.template import Message

FORMAT_NAME = "ernie-local chat"
FORMAT_VERSION = 1

AskerRole = Literal["user", "tool"]
_Value = TypeVar("_Value")
_ROLES: tuple[AskerRole, ...] = get_args(AskerRole)
_FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question (or the result of a tool) with its images, and what the model wrote after it."""

    role: AskerRole
    text: str
    images: tuple[ChatImage, ...]
    thinking: bool
    answer: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason

    def messages(self) -> list[Message]:
        """The turn as the chat template takes it."""
        image_tokens = tuple(image.report.tokens for image in self.images)
        return [
            Message(self.role, self.text, image_tokens),
            Message("assistant", self.answer, (), self.reasoning, self.tool_calls),
        ]


@dataclass(frozen=True, slots=True)
class SavedChat:
    """What a file of a chat holds."""

    system: str | None
    tools: tuple[Mapping[str, object], ...]
    turns: tuple[Turn, ...]


def write_chat(
    path: Path,
    system: str | None,
    tools: Sequence[Mapping[str, object]],
    turns: Sequence[Turn],
    model_name: str,
) -> None:
    """Write a chat to `path`, whole or not at all; images by their paths.

    UsageError for an image that has no path, ErnieLocalError where the file cannot be written.
    """
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "model": model_name,
        "system": system,
        "tools": list(tools),
        "turns": [_turn_to_json(number, turn) for number, turn in enumerate(turns, start=1)],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with written_whole(path, f"the chat of {len(text)} characters") as file:
        file.write(text.encode())


def read_saved_chat(path: str | os.PathLike[str], files: ModelFiles) -> SavedChat:
    """The chat in `path` for the model of `files`, with its images opened.

    InputUnreadable where the file, or an image that it names, is missing, broken, of another version, or
    another by now.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise _unreadable(path, f'it lacks "format": "{FORMAT_NAME}"')
    if content.get("version") != FORMAT_VERSION:
        raise InputUnreadable(
            f"{path}: a chat of version {content.get('version')!r}, version {FORMAT_VERSION} can be read",
            "another version of ernie-local wrote it",
            "use that version, or start a new chat",
        )
    try:
        system = None if content["system"] is None else _expect(content["system"], str)
        tools = tuple(_expect(tool, dict) for tool in _expect(content["tools"], list))
        turns = tuple(
            _turn_from_json(_expect(turn, dict), files.image_processor)
            for turn in _expect(content["turns"], list)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, f"a part of it is missing or wrong: {error}") from error
    return SavedChat(system, tools, turns)


def _turn_to_json(number: int, turn: Turn) -> dict[str, object]:
    images = []
    for image in turn.images:
        if image.path is None:
            raise UsageError(
                f"turn {number} of the chat has an image without a path ({image.report.name})",
                "a saved chat names its images by their files, and this one came from memory or a pipe",
                "save the image as a file and ask about that file",
            )
        images.append({"path": image.path, "size": list(image.report.original_size)})
    return {
        "role": turn.role,
        "text": turn.text,
        "images": images,
        "thinking": turn.thinking,
        "reasoning": turn.reasoning,
        "answer": turn.answer,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in turn.tool_calls],
        "finish_reason": turn.finish_reason,
    }


def _turn_from_json(turn: dict[str, object], processor: ImageProcessorConfig) -> Turn:
    calls = [_expect(call, dict) for call in _expect(turn["tool_calls"], list)]
    images = []
    for entry in _expect(turn["images"], list):
        width, height = _expect(_expect(entry, dict)["size"], list)
        size = (_expect(width, int), _expect(height, int))
        images.append(open_same_image(_expect(entry["path"], str), size, processor))
    return Turn(
        role=_one_of(_ROLES, turn["role"]),
        text=_expect(turn["text"], str),
        images=tuple(images),
        thinking=_expect(turn["thinking"], bool),
        answer=_expect(turn["answer"], str),
        reasoning=_expect(turn["reasoning"], str),
        tool_calls=tuple(
            ToolCall(_expect(call["name"], str), _expect(call["arguments"], dict)) for call in calls
        ),
        finish_reason=_one_of(_FINISH_REASONS, turn["finish_reason"]),
    )


def _expect(value: object, kind: type[_Value]) -> _Value:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} where a {kind.__name__} belongs")
    return value


def _one_of(known: tuple[_Value, ...], value: object) -> _Value:
    for one in known:
        if value == one:
            return one
    raise ValueError(f"{value!r} where one of {known} belongs")


def _unreadable(path: Path, why: str) -> InputUnreadable:
    return InputUnreadable(
        f"cannot read the chat in {path}", why, "give a file that /save or Chat.save has written"
    )
