"""A conversation with a loaded model: ask, read the pieces of the answer, undo, save, continue later."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ernie_local.errors import ErnieLocalError, UsageError
from ernie_local.loading import LoadedModel
from ernie_local.progress import Pauses
from ernie_local.reuse.cache_folder import CacheWarning
from ernie_local.sampling import SamplingOptions
from ernie_local.session.answering import Answering
from ernie_local.session.generation import AnswerOptions
from ernie_local.session.image import ChatImage, ChatImageSource
from ernie_local.session.image_tools import zoom_tool
from ernie_local.session.messages import (
    ChatMedia,
    ChatMessage,
    ChatTurn,
    MessagePart,
    asked_message,
    media_of,
    split_begun,
    split_turns,
)
from ernie_local.session.rounds import OpenQuestion
from ernie_local.session.tools import MOST_ROUNDS, Toolbox, ToolSource
from ernie_local.session.transcript import SavedChat, read_saved_chat, write_chat
from ernie_local.session.video import ChatVideo, ChatVideoSource
from ernie_local.structured import AnswerForm, FormSource
from ernie_local.text.reasoning import Piece
from ernie_local.text.template import Role, TextPrompt


class Chat(Answering):
    """A conversation, of one thread at a time; several chats with a model may be used from several threads.

    model: the model that answers. sampling, writer.tools: how tokens are chosen, and what the model may call,
    from the next question on. An answer whose pieces were not read to the end counts as interrupted at the
    next use of the chat. While a thread waits for a piece, the others get a UsageError from the chat and from
    the pieces, except from `stop`; so does who reads on after another thread has used the chat.
    """

    def __init__(
        self,
        model: LoadedModel,
        system: str | None = None,
        sampling: SamplingOptions | None = None,
        *,
        variant: str | None = None,
        tools: Sequence[ToolSource] = (),
        zoom: bool = False,
        max_rounds: int = MOST_ROUNDS,
    ) -> None:
        """system: the system text; None is the model's own, "" is none. sampling: None is as the model's
        generation_config.json says, greedy where it says nothing.

        variant: the chat template, "pt" or "thinking", or "file": the one among the model's files; None is
        what the files say. Where sources of the two disagree, it may name choices: "thinking,tools=after"
        (see `ChatTemplate`).

        tools: what the model may call. Functions and ChatTools are run by the chat, until the model answers,
        in at most `max_rounds` rounds; a mapping describes, in JSON, a tool that whoever asks runs. zoom: add
        `zoom_tool`, by which the model looks closer at a part of an image.

        Raises ModelUnusable where the tokenizer is missing or another model's, or the template of the files
        cannot be used; UsageError for tools with PT, and as of Toolbox.
        """
        toolbox = Toolbox([*tools, *([zoom_tool()] if zoom else [])], max_rounds)
        super().__init__(model, system, sampling, variant, toolbox)
        self._turns: tuple[ChatTurn, ...] = ()

    @property
    def system(self) -> str | None:
        """The system text: of the messages if they begin with one, else as it was given."""
        messages = self._turns[0].question if self._turns else ()
        return messages[0].text if messages and messages[0].role == "system" else self.writer.system

    @property
    def history(self) -> tuple[ChatTurn, ...]:
        """The turns so far, interrupted ones included."""
        self._end_half_read()
        return self._turns

    @property
    def images(self) -> tuple[ChatImage, ...]:
        """All images so far, as `AnswerBox.image` numbers them from 1."""
        return tuple(one for turn in self.history for one in turn.media if isinstance(one, ChatImage))

    @property
    def videos(self) -> tuple[ChatVideo, ...]:
        """All videos so far, as `AnswerTime.video` numbers them from 1."""
        return tuple(one for turn in self.history for one in turn.media if isinstance(one, ChatVideo))

    def ask(
        self,
        text: str | Sequence[MessagePart],
        images: Iterable[ChatImageSource] | ChatImageSource = (),
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        max_tokens: int | None = None,
        *,
        videos: Iterable[ChatVideoSource] | ChatVideoSource = (),
        schema: FormSource | None = None,
        role: Role = "user",
    ) -> Generator[Piece, None, None]:
        """Ask about text and images; yields reasoning and answer in pieces, as the model writes them.

        text: or texts, images and videos in their order, as of ChatMessage. images, videos: what
        `open_images` and `open_video` take or gave, or ImageParts and VideoParts; they stand before the text.
        role "tool" hands in what a tool gave. The rest is as of `send` of the history and one more message.
        """
        with self._entry:
            started = self._begin()
            question = tuple(self._opened([asked_message(role, text, images, videos)], self._turns))
            options = _options(thinking, thinking_budget, max_tokens, schema)
            return self._start(started, self._turns, question, options)

    def send(
        self,
        messages: Sequence[ChatMessage],
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        max_tokens: int | None = None,
        *,
        schema: FormSource | None = None,
    ) -> Generator[Piece, None, None]:
        """Answer a whole conversation, or go on with the answer that is its last message; yields pieces.

        The conversation takes the place of the history, unless no answer comes. What its beginning has in
        common with what was computed before is not computed again; images are compared by their pixels.
        A system message at the start goes before the chat's own system text. A last message from assistant
        stands behind the opening of an answer, and the pieces are what follows it: after its text, more of
        the answer, with its reasoning, or none, as the thought; after reasoning alone, more of the thought.

        The call itself opens the images and checks everything; the model computes while pieces are read.
        thinking: None is what the model was made for. thinking_budget: tokens after which a thought is
        closed. max_tokens: most tokens of thought and answer together; a share is kept for the answer.
        schema: what `AnswerForm.of` takes. The answer is held to that form token by token (a thought is free,
        and no tool is called), and the model is told of it behind the question.

        Raises UsageError, InputUnreadable, and DoesNotFit with the tokens of the prompt and of the context;
        after the last piece NoAnswer without a whole answer, and the history is as it was. Ctrl-C, `stop`
        and `close` on the pieces keep what came until then as an interrupted turn.
        """
        with self._entry:
            started = self._begin()
            said, begun = split_begun(self._opened(messages))
            turns, question = split_turns(said)
            options = _options(thinking, thinking_budget, max_tokens, schema)
            return self._start(started, turns, question, options, begun)

    def retry(
        self,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        max_tokens: int | None = None,
        *,
        schema: FormSource | None = None,
    ) -> Generator[Piece, None, None]:
        """Answer the last question again; the new turn takes the place of the old, unless no answer comes.

        All its messages are asked. Arguments and errors are those of `send`; UsageError without a question.
        """
        with self._entry:
            started = self._begin()
            *turns, last = self._some_turns("ask again")
            options = _options(thinking, thinking_budget, max_tokens, schema)
            return self._start(started, tuple(turns), last.question, options)

    def undo(self) -> ChatTurn:
        """Forget the last question and its answer, and return them; UsageError where there is none.

        The system text of the chat stays, also where the forgotten messages began with it.
        """
        with self._entry:
            self._end_running()
            *turns, last = self._some_turns("undo")
            self.writer.system = self.system
            self._turns = tuple(turns)
            self._sequence.trim(*self._said())
            return last

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chat as JSON, images and videos by their paths; UsageError for one that has none."""
        saved = SavedChat(self.writer.system, self.writer.tools, self.history)
        write_chat(Path(path), saved, str(self.model.directory))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: LoadedModel,
        sampling: SamplingOptions | None = None,
        *,
        variant: str | None = None,
        password: str | None = None,
        tools: Sequence[ToolSource] = (),
        zoom: bool = False,
        max_rounds: int = MOST_ROUNDS,
    ) -> Chat:
        """Continue a saved chat; images and videos are opened now, and computed with the next question.

        password: of encrypted PDFs, which the file does not hold. tools, zoom: as of `SavedChat.with_tools`.
        InputUnreadable where the file, or an image or video that it names, is missing, broken or another
        by now.
        """
        saved = read_saved_chat(path, model.files, password).with_tools(tools, zoom)
        return cls.resume(saved, model, sampling, variant=variant, max_rounds=max_rounds)

    @classmethod
    def resume(
        cls,
        saved: SavedChat,
        model: LoadedModel,
        sampling: SamplingOptions | None = None,
        *,
        variant: str | None = None,
        max_rounds: int = MOST_ROUNDS,
    ) -> Chat:
        """Continue a chat that `read_saved_chat` has read."""
        chat = cls(model, saved.system, sampling, variant=variant, tools=saved.tools, max_rounds=max_rounds)
        chat._turns = saved.turns
        return chat

    def _opened(self, messages: Sequence[ChatMessage], turns: Iterable[ChatTurn] = ()) -> list[ChatMessage]:
        """The messages with their images and videos opened, which share the context with those of `turns`.

        Interrupted where a stop is asked for while a video is read.
        """
        files, context_size = self.model.files, self._sequence.engine.context_size
        room = context_size - sum(one.num_tokens for turn in turns for one in turn.media)
        pauses, opened = Pauses(self._should_stop), list[ChatMessage]()
        for message in messages:
            pause = partial(pauses.ask, "messages", len(opened), len(messages))
            video_processor = files.video_processor if message.has_videos else None
            one = message.opened(files.image_processor, context_size, video_processor, room, pause)
            room -= sum(media.num_tokens for media in one.media)
            opened.append(one)
        return opened

    def _start(
        self,
        started: float,
        turns: tuple[ChatTurn, ...],
        question: tuple[ChatMessage, ...],
        options: AnswerOptions,
        begun: ChatMessage | None = None,
    ) -> Generator[Piece, None, None]:
        """Check and prepare everything that needs no model. started: when it was asked."""
        question_options = replace(options, top_scores=self.top_scores)
        opened = OpenQuestion(
            self._parts(), question_options, started, history=turns, messages=question, begun=begun
        )
        return self._answer(opened)

    def _some_turns(self, purpose: str) -> tuple[ChatTurn, ...]:
        if not self._turns:
            raise UsageError(f"there is nothing to {purpose}", "the chat has 0 turns", "ask something first")
        return self._turns

    def _keep(self, question: OpenQuestion) -> None:
        """Also in the history, where it says anything, and in the cache folder."""
        super()._keep(question)
        if question.is_plain:
            return
        turn = question.to_turn()
        if turn is not None:
            self._turns = (*question.history, turn)
        self._store()

    def _store(self) -> None:
        """Write what was computed into the cache folder, if there is one."""
        if self._sequence.has_folder:
            try:
                self._sequence.store(*self._said(), self._should_stop, self.on_progress)
            except ErnieLocalError as error:  # a template may refuse what the model wrote
                told = f"the chat is not stored in the cache: {error.what}"
                warnings.warn(told, CacheWarning, stacklevel=2)

    def _said(self) -> tuple[TextPrompt, tuple[ChatMedia, ...]]:
        """The turns as the next prompt will begin with them, and their images and videos."""
        messages = [message for turn in self._turns for message in turn.messages()]
        return self.writer.prompt([message.for_template() for message in messages]), media_of(messages)


def _options(
    thinking: bool | None,
    thinking_budget: int | None,
    max_tokens: int | None,
    schema: FormSource | None,
) -> AnswerOptions:
    form = None if schema is None else AnswerForm.of(schema)
    return AnswerOptions(thinking, thinking_budget, max_tokens, form)
