"""A chat that answers from a script, as nano neither points at places nor makes mistakes at will."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ernie_local.loading import LoadedModel
from ernie_local.session import Answer, Chat, ChatMessage, Piece, Timings, ToolCall, Usage
from ernie_local.session.boxes import locate_boxes
from ernie_local.session.messages import images_of, media_of
from ernie_local.session.times import locate_times
from ernie_local.session.video import ChatVideo


class ScriptedChat(Chat):
    """Answers a question with the text that `script` has for it, word by word, else with the question.

    calls: of tools, by question. may_go: words go one by one when it is released; None: all at once.
    """

    def __init__(
        self,
        model: LoadedModel,
        script: Mapping[str, str],
        calls: Mapping[str, ToolCall] | None = None,
        may_go: threading.Semaphore | None = None,
    ) -> None:
        super().__init__(model, variant="thinking")
        self.script, self.calls, self.may_go = script, calls or {}, may_go
        self.is_stopped = False
        self.asked: list[Sequence[ChatMessage]] = []
        self._scripted: Answer | None = None

    @property
    def last(self) -> Answer | None:
        """The answer that ended last."""
        return self._scripted

    def send(  # type: ignore[override]
        self, messages: Sequence[ChatMessage], *_: object, **__: Any
    ) -> Iterator[Piece]:
        self.is_stopped = False
        self.asked.append(messages)
        files = self.model.files
        opened = [
            message.opened(files.image_processor, video_processor=files.video_processor)
            for message in messages
        ]
        question = messages[-1].text.strip()
        return self._pieces(question, self.script.get(question, question), opened)

    def stop(self) -> None:
        self.is_stopped = True

    def _pieces(self, question: str, text: str, messages: Sequence[ChatMessage]) -> Iterator[Piece]:
        written = ""
        try:
            for word in _words(text):
                while self.may_go is not None and not self.may_go.acquire(timeout=0.01):
                    if self.is_stopped:
                        break
                if self.is_stopped:
                    break
                written += word
                yield Piece("answer", word)
        finally:  # a stop text closes it
            self._end(question, written, messages)

    def _end(self, question: str, written: str, messages: Sequence[ChatMessage]) -> None:
        images = images_of(messages)
        boxes, notes = locate_boxes(written, images, len(images_of(messages[-1:])))
        videos = [one for one in media_of(messages) if isinstance(one, ChatVideo)]
        times = locate_times(written, videos, len(videos))
        call = self.calls.get(question)
        self._scripted = Answer(
            text=written,
            reasoning="",
            tool_calls=() if call is None else (call,),
            finish_reason="interrupted" if self.is_stopped else "stop",
            usage=Usage(10, sum(image.num_tokens for image in images), 0, len(_words(written)), 0),
            timings=Timings(0.0, 0.0, 0.0, 0.0),
            images=tuple(image.report for image in images),
            seed=0,
            peak_memory_bytes=None,
            boxes=boxes,
            box_notes=notes,
            times=times,
        )


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)
