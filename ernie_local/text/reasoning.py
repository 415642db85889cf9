"""Splits generated text into reasoning, answer and tool calls while it is written.

The tags are <think>, <response> and <tool_call>; the text may come in pieces that cut through them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<response>", "</response>"
TOOL_CALL_OPEN, TOOL_CALL_CLOSE = "<tool_call>", "</tool_call>"
OUTPUT_TAGS = (THINK_OPEN, THINK_CLOSE, RESPONSE_OPEN, RESPONSE_CLOSE, TOOL_CALL_OPEN, TOOL_CALL_CLOSE)

PieceKind = Literal["reasoning", "answer"]


class ScoredToken(NamedTuple):
    """A token, its bytes, which may be a part of a character, and the logarithm of its probability."""

    token_id: int
    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of an answer, and the likeliest ones in its place, the likeliest first."""

    chosen: ScoredToken
    likeliest: tuple[ScoredToken, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the reasoning or of the answer; the parts of a kind joined are the whole.

    scores: where they were asked for, of the tokens that came since the piece of the answer before.
    """

    kind: PieceKind
    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for, with unchecked arguments."""

    name: str
    arguments: Mapping[str, object]


class ReasoningParser:
    """Takes generated text piece by piece. The joined result does not depend on where the text was cut.

    Newlines around reasoning and answer are dropped, so trailing ones are kept back until more text comes.
    No tag stays in the answer, whatever is between its letters: before the answer's first letter <think>
    opens a thought, later a tag is only dropped. With `with_tools`, calls are moved from the answer to
    `tool_calls`; of one that is not JSON with a name the text stays.
    """

    def __init__(self, in_reasoning: bool, with_tools: bool = False, *, has_begun: bool = False) -> None:
        """has_begun: whether text of the same section stands before; then newlines at the start are kept."""
        self.tool_calls: list[ToolCall] = []
        self._with_tools = with_tools
        self._section: PieceKind | Literal["tool call"] = "reasoning" if in_reasoning else "answer"
        self._at_start = not has_begun
        self._unread = ""
        self._half_tags: list[str] = []  # at the end of the answer; more text may complete the last one
        self._newlines = ""
        self._call_text = ""
        self._pieces: list[Piece] = []

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text belongs to the reasoning."""
        return self._section == "reasoning"

    @property
    def in_answer(self) -> bool:
        """Whether the next text belongs to the answer."""
        return self._section == "answer"

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._unread += text
        self._read(is_last=False)
        return self._taken_pieces()

    def finish(self) -> list[Piece]:
        """The pieces kept back until the end: half a tag is text, and an open tool call has ended."""
        self._read(is_last=True)
        if self._section == "tool call":
            self._end_tool_call()
        self._take_body("answer", "".join(self._half_tags))
        self._half_tags.clear()
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
            # After this text other tags may count.
            text, self._unread = self._unread[:end], self._unread[end:]
            self._take_text(text)

    def _awaited_tags(self) -> Sequence[str]:
        if self._section == "tool call":
            return (TOOL_CALL_CLOSE,)
        if self._section == "reasoning":
            return (THINK_CLOSE, THINK_OPEN) if self._at_start else (THINK_CLOSE,)
        may_think = self._at_start and not self._half_tags
        return [TOOL_CALL_OPEN] * self._with_tools + [THINK_OPEN] * may_think

    def _take_tag(self, tag: str) -> None:
        if tag in (THINK_OPEN, THINK_CLOSE):
            self._section = "reasoning" if tag == THINK_OPEN else "answer"
            self._at_start, self._newlines = True, ""
        elif tag == TOOL_CALL_OPEN:
            self._section = "tool call"
        else:
            self._end_tool_call()

    def _take_text(self, text: str) -> None:
        if self._section == "tool call":
            self._call_text += text
        elif self._section == "reasoning":
            self._take_body("reasoning", text)
        else:
            self._take_body("answer", self._without_tags(text))

    def _without_tags(self, text: str) -> str:
        """More text of the answer without tags, also those that appear when a tag between them goes."""
        kept, half_tags = list[str](), self._half_tags
        for letter in text:
            grown = half_tags[-1] + letter if half_tags else letter
            if letter == "<":
                half_tags.append(letter)
            elif half_tags and grown in OUTPUT_TAGS:
                half_tags.pop()
            elif half_tags and any(tag.startswith(grown) for tag in OUTPUT_TAGS):
                half_tags[-1] = grown
            else:
                kept += [*half_tags, letter]
                half_tags.clear()
        return "".join(kept)

    def _take_body(self, kind: PieceKind, text: str) -> None:
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return
        self._at_start = False
        body = text.rstrip("\n")
        if body:
            self._pieces.append(Piece(kind, self._newlines + body))
            self._newlines = ""
        self._newlines += text[len(body) :]

    def _end_tool_call(self) -> None:
        text, self._call_text, self._section = self._call_text, "", "answer"
        call = parse_tool_call(text)
        if call is not None:
            self.tool_calls.append(call)
        else:
            self._take_text(text)


class PlainText:
    """Takes text as a ReasoningParser does, and gives all of it as the answer, tags too."""

    in_reasoning, in_answer = False, True
    tool_calls: Sequence[ToolCall] = ()

    def push(self, text: str) -> list[Piece]:
        """The text."""
        return [Piece("answer", text)] if text else []

    def finish(self) -> list[Piece]:
        """Nothing: nothing is kept back."""
        return []


def parse_tool_call(text: str) -> ToolCall | None:
    """The call in the JSON of one <tool_call>, where closing braces may be missing; None for other text."""
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
    """Number of characters at the end of `text` that may begin one of `tags`."""
    longest = min(max((len(tag) - 1 for tag in tags), default=0), len(text))
    lengths = range(longest, 0, -1)
    return next((length for length in lengths if any(tag.startswith(text[-length:]) for tag in tags)), 0)
