"""Asks a model about the images or the video of a document, and once more where a check fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ernie_local.errors import InputUnreadable, Interrupted, ModelUnusable, UsageError, parameter
from ernie_local.extraction.boxes import BOX_INSTRUCTION, schema_with_boxes, split_boxes, split_confidence
from ernie_local.extraction.checks import Check, failed_checks
from ernie_local.extraction.questions import FieldQuestion, object_schema, put, questions_of
from ernie_local.extraction.run import DocumentMedia, FoundFields
from ernie_local.loading import LoadedModel
from ernie_local.media.detail import Detail
from ernie_local.media.open_image import OpenedImage
from ernie_local.media.video_sampling import VideoSampling
from ernie_local.progress import Pauses
from ernie_local.sampling import SamplingOptions
from ernie_local.session import (
    Answer,
    Chat,
    ChatImage,
    ChatMedia,
    ChatMessage,
    ChatVideo,
    ImagePart,
    Piece,
    VideoPart,
    open_chat_images,
    open_chat_video,
)
from ernie_local.structured import AnswerForm

DEFAULT_PROMPT, DEFAULT_VIDEO_PROMPT = "Read the fields of this document.", "Read the fields of this video."
NO_BOXES_NOTE = "boxes are asked for of images: the values of a video are read without"
# A model may repeat itself until the context is full.
DEFAULT_MAX_TOKENS = 2048
AskMode = Literal["together", "each"]


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """What is asked about each document.

    form: of the fields, an object. ask: "together" asks for all fields in one answer of JSON; "each" asks one
    question for each field, for small models. prompt: what is asked; with "each", what stands before each
    question. boxes: ask for the place of each value too, of images. checks: of the fields. retry: ask once
    more where a check fails. thinking, thinking_budget, max_tokens: of each answer, as of `Chat.send`.
    detail, trim: of each image, as of `ImagePart`. fps, frames: of each video, as of `VideoPart`.
    """

    form: AnswerForm
    ask: AskMode = "together"
    prompt: str | None = None
    boxes: bool = False
    checks: tuple[Check, ...] = ()
    retry: bool = False
    thinking: bool | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    detail: Detail = "high"
    trim: bool = False
    fps: float | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        object_schema(self.form)
        _ = self.sampling  # refuses what means nothing
        if self.boxes and self.ask == "each":
            raise UsageError(
                f"{parameter('boxes')} with {parameter('ask', 'each')}",
                "a model that answers one value at a time writes no box beside it",
                parameter("ask", "together"),
            )
        _ = self.answer_form  # refuses a schema that has no form with boxes

    @property
    def sampling(self) -> VideoSampling:
        """Which frames of a video are seen."""
        return VideoSampling(self.fps, self.frames)

    @property
    def answer_form(self) -> AnswerForm:
        """Of an answer to all questions: with a box beside each value, where boxes are asked for."""
        if not self.boxes:
            return self.form
        paired = AnswerForm.of(schema_with_boxes(self.form.schema or {}))
        return paired.with_instruction(f"{paired.instruction} {BOX_INSTRUCTION}")

    def identity(self) -> dict[str, str]:
        """What the records depend on, by name: the file of records is continued for the same alone."""
        schema = json.dumps(self.form.schema, ensure_ascii=False)
        of_videos = {"fps": self.fps, "frames": self.frames}
        seen = "".join(f", {name} {number:g}" for name, number in of_videos.items() if number is not None)
        return {
            "schema": hashlib.sha256(schema.encode()).hexdigest()[:16],
            "ask": self.ask,
            "prompt": self.prompt or "",
            "boxes": str(self.boxes),
            "check": "; ".join(check.text for check in self.checks),
            "retry": str(self.retry),
            "max-tokens": str(self.max_tokens),
            "think": f"{self.thinking}, {self.thinking_budget}",
            "detail": f"{self.detail}{', trimmed' * self.trim}{seen}",
        }


class ChatReader:
    """A DocumentReader with a chat of its own, whose history it replaces."""

    def __init__(self, chat: Chat, options: ReadingOptions) -> None:
        """UsageError for a form without named fields."""
        self.prompt_tokens = self.completion_tokens = 0
        self._chat, self._options = chat, options
        self._questions = questions_of(options.form) if options.ask == "each" else ()
        self._form = options.answer_form
        self._is_stopped = False

    def open_video(self, path: Path) -> ChatVideo:
        """As of DocumentReader; InputUnreadable also where the model's files do not say how it sees one.

        DoesNotFit before a frame is decoded, and Interrupted after `stop`.
        """
        part, model = VideoPart(path, self._options.fps, self._options.frames), self._chat.model
        pause = partial(Pauses(lambda: self._is_stopped).ask, "answers", 0, 1)
        try:
            return open_chat_video(part, model.files.video_processor, model.settings.context_size, pause)
        except ModelUnusable as error:  # images go on
            raise InputUnreadable(f"{path}: {error.what}", error.why, error.hint) from error

    def read(self, media: Sequence[DocumentMedia]) -> FoundFields:
        """As of DocumentReader."""
        options, model = self._options, self._chat.model
        parts = [
            ImagePart(one, options.detail, trim=options.trim) for one in media if isinstance(one, OpenedImage)
        ]
        opened: list[ChatMedia] = [
            *open_chat_images(parts, model.image_processor, model.settings.context_size),
            *(one for one in media if isinstance(one, ChatVideo)),
        ]
        found = self._ask_fields(opened, self._questions) if self._questions else self._ask_together(opened)
        failed = failed_checks(options.checks, found.fields)
        if failed and options.retry:
            again = self._ask_again(opened, failed, found)
            failed_again = failed_checks(options.checks, again.fields)
            if len(failed_again) < len(failed):
                found, failed = again, failed_again
        return replace(found, failed_checks=tuple(check.text for check in failed))

    def stop(self) -> None:
        """As of DocumentReader; for good."""
        self._is_stopped = True
        self._chat.stop()

    def _form_of(self, media: Sequence[ChatMedia]) -> AnswerForm:
        """Of an answer to all questions; without boxes where there is a video."""
        return self._options.form if _has_video(media) else self._form

    def _ask_together(self, media: Sequence[ChatMedia]) -> FoundFields:
        default = DEFAULT_VIDEO_PROMPT if _has_video(media) else DEFAULT_PROMPT
        answer = self._ask(media, self._options.prompt or default, self._form_of(media))
        return self._found(answer, media)

    def _found(self, answer: Answer, media: Sequence[ChatMedia]) -> FoundFields:
        """What an answer to all questions says."""
        if not self._options.boxes:
            return FoundFields(answer.value, answer.confidence)
        if _has_video(media):
            return FoundFields(answer.value, answer.confidence, notes=(NO_BOXES_NOTE,))
        images = [one for one in media if isinstance(one, ChatImage)]
        if len(images) > 1:
            raise UsageError(
                f"{parameter('boxes')} with {len(images)} images in one question",
                "a box does not say in which of them it lies",
                f"one page at a time, without {parameter('per_file')}",
            )
        fields, boxes, notes = split_boxes(answer.value, images[0].view)
        return FoundFields(fields, split_confidence(answer.confidence), boxes, notes=notes)

    def _ask_again(
        self, media: Sequence[ChatMedia], failed: Sequence[Check], found: FoundFields
    ) -> FoundFields:
        """What the model finds after it has been told what does not hold."""
        told = f"This does not hold: {'; '.join(check.describe(found.fields) for check in failed)}."
        if not self._questions:
            text = f"{told} Look at the document again, and correct the fields."
            answer = self._run(self._chat.ask(text, **self._limits, schema=self._form_of(media)))
            return self._found(answer, media)
        named = {path for check in failed for path in check.fields}
        doubtful = [each for each in self._questions if each.is_in(named)]
        return self._ask_fields(media, doubtful, f"{told} ", found)

    def _ask_fields(
        self,
        media: Sequence[ChatMedia],
        questions: Sequence[FieldQuestion],
        told: str = "",
        known: FoundFields | None = None,
    ) -> FoundFields:
        """One question after the other; images and video are computed once. known: what other fields are."""
        fields = {} if known is None else deepcopy(dict(known.fields))
        confidence = {} if known is None else dict(known.confidence)
        prompt = f"{self._options.prompt} " if self._options.prompt else ""
        for question in questions:
            answer = self._ask(media, f"{prompt}{told}{question.text}", question.form)
            put(fields, question.names, question.read(answer.value))
            for path in [path for path in confidence if question.has(path)]:
                del confidence[path]  # of a longer list, before
            confidence |= {question.path_of(path): share for path, share in answer.confidence.items()}
        return FoundFields(fields, confidence)

    def _ask(self, media: Sequence[ChatMedia], text: str, form: AnswerForm) -> Answer:
        message = ChatMessage("user", (*media, text))
        return self._run(self._chat.send([message], **self._limits, schema=form))

    @property
    def _limits(self) -> dict[str, Any]:
        names = ("thinking", "thinking_budget", "max_tokens")
        return {name: getattr(self._options, name) for name in names}

    def _run(self, pieces: Iterator[Piece]) -> Answer:
        """The answer, written to its end; its tokens are counted, whatever the end."""
        before = self._chat.last
        try:
            for _ in pieces:
                if self._is_stopped:  # before the answer began
                    self._chat.stop()
        finally:
            answer = self._chat.last
            if answer is not None and answer is not before:
                self.prompt_tokens += answer.usage.prompt_tokens
                self.completion_tokens += answer.usage.completion_tokens
        assert answer is not None, "it has ended"
        if answer.finish_reason == "interrupted":
            raise Interrupted("stopped within an answer", "a stop was asked for", "ask again")
        return answer


def _has_video(media: Sequence[ChatMedia]) -> bool:
    return any(isinstance(one, ChatVideo) for one in media)


def chat_readers(
    model: LoadedModel, options: ReadingOptions, count: int, variant: str | None = None
) -> list[ChatReader]:
    """So many readers, each with a chat of its own. variant: of the chat template, as of Chat.

    They choose the likeliest tokens: what is read must not hang on a seed.
    """
    if count < 1:
        raise UsageError(
            f"{parameter('parallel', count)} cannot be used", "it must be 1 or more", parameter("parallel", 1)
        )
    most = model.settings.parallel
    if count > most:
        raise UsageError(
            f"{parameter('parallel', count)} is more than the {most} that the model was loaded for",
            "each has its own memory of the context, which was planned when the model was loaded",
            f"load(..., parallel={count})",
        )
    chats = [Chat(model, sampling=SamplingOptions(), variant=variant) for _ in range(count)]
    return [ChatReader(chat, options) for chat in chats]
