"""Runs of the command line: in this process, in another one, and a chat that needs no weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

from jsonschema import Draft202012Validator

from ernie_local.errors import NoAnswer, UsageError
from ernie_local.session import Answer, Chat, Piece, Timings, Usage
from ernie_local.session.boxes import locate_boxes
from ernie_local.session.times import locate_times

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Result:
    """How a run of the command ended."""

    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout, which must be valid by the schema of its command."""
        value = json.loads(self.stdout)
        assert isinstance(value, dict)
        validator_of(value["schema"].removeprefix("ernie-local.").removesuffix("/1")).validate(value)
        return value


class Command(Protocol):
    """`command("chat", "-p", "hi", stdin=b"...")`."""

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result: ...


@cache
def validator_of(command: str) -> Draft202012Validator:
    """By docs/json/COMMAND.schema.json, and strict: no key may be there that the schema does not name."""
    schema = json.loads((DOCS / "json" / f"{command}.schema.json").read_text(encoding="utf-8"))
    for each in (schema, *schema["$defs"].values()):
        each["additionalProperties"] = False
    return Draft202012Validator(schema)


def run_python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, with these environment variables besides ours."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@dataclass
class FakeChat:
    """Says `pieces`, whatever is asked, and remembers what was asked."""

    pieces: Sequence[Piece] = (Piece("answer", "forty"), Piece("answer", "-two"))
    finish_reason: str = "stop"
    error: BaseException | None = None
    between: Callable[[], None] | None = None  # called after the first piece
    system: str | None = None
    questions: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    last: Answer | None = None
    model: Any = field(default_factory=lambda: SimpleNamespace(load_seconds=0.25))
    history: tuple[Any, ...] = ()
    is_stopped: bool = False
    images, videos = Chat.images, Chat.videos  # of `history`

    def ask(
        self, text: str, images: Sequence[Any] = (), videos: Sequence[Any] = (), **settings: Any
    ) -> Iterator[Piece]:
        self.is_stopped = False
        named = {"videos": [video.name for video in videos]} if videos else {}
        self.questions.append({"text": text, "images": [image.name for image in images], **named, **settings})
        if self.error is not None:
            raise self.error
        said: list[Piece] = []
        for index, piece in enumerate(self.pieces):
            if self.is_stopped:
                break
            said.append(piece)
            yield piece
            if index == 0 and self.between is not None:
                self.between()
        answer = "".join(piece.text for piece in said if piece.kind == "answer")
        shown = [image for turn in self.history for image in turn.images] + list(images)
        boxes, box_notes = locate_boxes(answer, shown, len(images))
        self.last = Answer(
            text=answer,
            reasoning="".join(piece.text for piece in said if piece.kind == "reasoning"),
            tool_calls=(),
            finish_reason=cast("Any", "interrupted" if self.is_stopped else self.finish_reason),
            usage=Usage(20, 9, 0, len(said), sum(piece.kind == "reasoning" for piece in said)),
            timings=Timings(image=0.1, prefill=0.2, decode=0.4, total=0.7),
            images=(),
            seed=0,
            peak_memory_bytes=3 << 30,
            boxes=boxes,
            box_notes=box_notes,
            times=locate_times(answer, videos, len(videos)),
        )
        if not self.last.text and not self.is_stopped:
            raise NoAnswer("no answer", "thoughts", "--think-budget 5")
        if said:
            self.history = (*self.history, self._turn(text, images, videos))

    def _turn(self, text: str, images: Sequence[Any], videos: Sequence[Any]) -> Any:
        return SimpleNamespace(text=text, images=tuple(images), media=(*images, *videos))

    def retry(self, **settings: Any) -> Iterator[Piece]:
        if not self.history:
            raise UsageError("there is nothing to ask again", "the chat has 0 turns", "ask something first")
        *turns, last = self.history
        self.history = tuple(turns)
        return self.ask(last.text, last.images, **settings)

    def stop(self) -> None:
        self.is_stopped = True

    def undo(self) -> Any:
        self.calls.append("undo")
        *turns, last = self.history
        self.history = tuple(turns)
        return last

    def save(self, path: Path) -> None:
        self.calls.append(f"save {path}")
        Path(path).write_text("{}")
