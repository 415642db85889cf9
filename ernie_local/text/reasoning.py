"""What the model writes, taken apart while it is written: reasoning, answer, tool calls.

Owns the tags <think>, <response> and <tool_call> in generated text, however the text is cut into pieces.
Knows nothing of token ids, of budgets, or of how an answer is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<response>", "</response>"
TOOL_CALL_OPEN, TOOL_CALL_CLOSE = "<tool_call>", "</tool_call>"
OUTPUT_TAGS = (THINK_OPEN, THINK_CLOSE, RESPONSE_OPEN, RESPONSE_CLOSE, TOOL_CALL_OPEN, TOOL_CALL_CLOSE)

PieceKind = Literal["reasoning", "answer"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a running answer; the texts of one kind joined are the whole of that kind."""

    kind: PieceKind
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; `arguments` are as the model wrote them, unchecked."""

    name: str
    arguments: Mapping[str, object]


class _Section(Enum):
    REASONING = auto()
    ANSWER = auto()
    TOOL_CALL = auto()


class ReasoningParser:
    """Takes generated text piece by piece; any cut of the same text gives the same joined result.

    The newlines around reasoning and answer are dropped, so trailing ones wait until more text comes.
    <think>, </think> and <response> count only where nothing but newlines stands before them: an
    answer may speak about tags. With `with_tools`, calls are taken out of the answer into `tool_calls`;
    one that is not JSON with a name stays in the answer as it is written.
    """

    def __init__(self, in_reasoning: bool, with_tools: bool = False) -> None:
        self.tool_calls: list[ToolCall] = []
        self._with_tools = with_tools
        self._section = _Section.REASONING if in_reasoning else _Section.ANSWER
        self._at_start = True
        self._in_response = False
        self._unread = ""
        self._newlines = ""
        self._call_text = ""
        self._pieces: list[Piece] = []

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text belongs to the reasoning."""
        return self._section is _Section.REASONING

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` makes certain."""
        self._unread += text
        self._read(is_last=False)
        return self._taken_pieces()

    def finish(self) -> list[Piece]:
        """The pieces still held back: the text has ended, a half tag is text, an open tool call is over."""
        self._read(is_last=True)
        if self._section is _Section.TOOL_CALL:
            self._end_tool_call(closing_tag="")
        return self._taken_pieces()

    def _taken_pieces(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _read(self, is_last: bool) -> None:
        while self._unread:
            tags = self._awaited_tags()
            found = [(self._unread.index(tag), tag) for tag in tags if tag in self._unread]
            if found:
                end, tag = min(found)
                if end == 0:
                    self._unread = self._unread[len(tag) :]
                    self._take_tag(tag)
                    continue
            else:
                end = len(self._unread) - (0 if is_last else _half_tag_length(self._unread, tags))
            if end == 0:
                return
            # Text may end the start of its section, and then other tags count: look again from here.
            text, self._unread = self._unread[:end], self._unread[end:]
            self._take_text(text)

    def _awaited_tags(self) -> Sequence[str]:
        if self._section is _Section.TOOL_CALL:
            return (TOOL_CALL_CLOSE,)
        if self._section is _Section.REASONING:
            return (THINK_CLOSE, THINK_OPEN) if self._at_start else (THINK_CLOSE,)
        tags = [TOOL_CALL_OPEN] if self._with_tools else []
        if self._at_start:
            tags += [THINK_OPEN, THINK_CLOSE, RESPONSE_OPEN]
        if self._in_response:
            tags.append(RESPONSE_CLOSE)
        return tags

    def _take_tag(self, tag: str) -> None:
        if tag == THINK_OPEN:
            self._enter(_Section.REASONING)
        elif tag == THINK_CLOSE:
            self._enter(_Section.ANSWER)
        elif tag == TOOL_CALL_OPEN:
            self._section = _Section.TOOL_CALL
        elif tag == TOOL_CALL_CLOSE:
            self._end_tool_call(closing_tag=tag)
        else:
            self._in_response = tag == RESPONSE_OPEN

    def _enter(self, section: _Section) -> None:
        self._section, self._at_start, self._newlines = section, True, ""

    def _take_text(self, text: str) -> None:
        if self._section is _Section.TOOL_CALL:
            self._call_text += text
            return
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return
        self._at_start = False
        body = text.rstrip("\n")
        trailing = text[len(body) :]
        if body:
            kind: PieceKind = "reasoning" if self.in_reasoning else "answer"
            self._pieces.append(Piece(kind, self._newlines + body))
            self._newlines = trailing
        else:
            self._newlines += trailing

    def _end_tool_call(self, closing_tag: str) -> None:
        text, self._call_text, self._section = self._call_text, "", _Section.ANSWER
        call = parse_tool_call(text)
        if call is not None:
            self.tool_calls.append(call)
        else:
            self._take_text(TOOL_CALL_OPEN + text + closing_tag)


def parse_tool_call(text: str) -> ToolCall | None:
    """The call in the JSON of one <tool_call>, closing braces may be missing; None for anything else."""
    for missing in ("", "}", "}}"):
        try:
            call = json.loads(text.strip() + missing)
        except RecursionError:
            return None
        except ValueError:
            continue
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", {})
        return ToolCall(call["name"], arguments) if isinstance(arguments, dict) else None
    return None


def _half_tag_length(text: str, tags: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of one of `tags`."""
    longest = max((len(tag) - 1 for tag in tags), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in tags):
            return length
    return 0
