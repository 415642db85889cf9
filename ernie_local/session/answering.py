"""Runs the answers of one sequence, one at a time, and ends each rightly, however its reader leaves it."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Generator, Sequence

from ernie_local.errors import UsageError
from ernie_local.loading import LoadedModel
from ernie_local.model.limits import check_ids
from ernie_local.progress import OnProgress
from ernie_local.sampling import Sampler, SamplingOptions, model_sampling
from ernie_local.session.answer import Answer
from ernie_local.session.generation import AnswerOptions
from ernie_local.session.pieces import Pieces, ended_elsewhere, is_in_use, still_written
from ernie_local.session.rounds import ChatParts, OpenQuestion
from ernie_local.session.sequence import CachedSequence
from ernie_local.session.tools import Toolbox, ToolStep
from ernie_local.session.writer import ChatWriter, check_may_fit
from ernie_local.text.reasoning import Piece
from ernie_local.text.template import TextPrompt


class Answering:
    """What answers have in common, whether they belong to a chat or go on with a text: see Chat.

    top_scores: how many of the likeliest tokens are told beside each token of an answer, with their
    probabilities, as `scores` of its pieces; None tells nothing and costs nothing.
    """

    def __init__(
        self,
        model: LoadedModel,
        system: str | None,
        sampling: SamplingOptions | None,
        variant: str | None,
        toolbox: Toolbox,
    ) -> None:
        self.model = model
        self.sampling = model_sampling(model.files.generation_config) if sampling is None else sampling
        self.top_scores: int | None = None
        self.toolbox = toolbox
        self.writer = ChatWriter(model.files, system, toolbox.descriptions, variant)
        self._last: Answer | None = None
        self._sequence = CachedSequence(model.engine(), model.config, model.results)
        self._running: Generator[Piece, None, bool] | None = None
        self._entry = threading.RLock()
        self._ended_by = 0  # the thread that last made an answer count as interrupted
        # A plain flag, as a signal handler may set it at any moment: an Event would lock.
        self._stop_asked = False
        #: Gets "images", "tokens", or "model" (bytes that are hashed), how many are done, and all of them.
        self.on_progress: OnProgress | None = None
        #: Gets each call of a tool that the chat has run.
        self.on_step: Callable[[ToolStep], None] | None = None

    @property
    def last(self) -> Answer | None:
        """The answer that ended last, also an interrupted or an empty one; None before the first."""
        self._end_half_read()
        return self._last

    def stop(self) -> None:
        """End the running answer after the current token; also from another thread or a signal handler."""
        self._stop_asked = True

    def complete(
        self, prompt: str | Sequence[int], max_tokens: int | None = None
    ) -> Generator[Piece, None, None]:
        """Go on with a text that no template has written; yields pieces of it, with tags as their letters.

        prompt: a text, which comes behind the begin token, and in which tags are letters; or the ids of all
        tokens, of which those of tags are tags. `history` stays as it is. max_tokens and errors are those of
        `Chat.send`, except that an empty completion is one.
        """
        with self._entry:
            started = self._begin()
            if isinstance(prompt, str):
                context_size = self._sequence.engine.context_size
                check_may_fit([prompt], context_size, self.writer.tokenizer.longest_bytes)
            written = self.writer.plain(prompt) if isinstance(prompt, str) else TextPrompt(tuple(prompt))
            self._check_ids(written.token_ids)
            options = AnswerOptions(max_tokens=max_tokens, top_scores=self.top_scores)
            return self._answer(OpenQuestion(self._parts(), options, started, plain=written))

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        """UsageError for ids that no text has, or only together with an image."""
        media = self.model.config.media_ids
        places = () if media is None else (media.image, media.video)
        num_places = sum(token_id in places for token_id in token_ids)
        if num_places or not token_ids:
            raise UsageError(
                f"a prompt of {len(token_ids)} tokens, {num_places} of them places of images or videos",
                "a completion goes on with text, and needs at least 1 token of it",
                "ask about images and videos in a chat",
            )
        check_ids(token_ids, self.model.config.text.vocab_size)

    def _parts(self) -> ChatParts:
        """For the next question."""
        return ChatParts(
            model=self.model,
            writer=self.writer,
            sequence=self._sequence,
            toolbox=self.toolbox,
            sampler=Sampler(self.sampling, self.model.network.dtype),
            should_stop=self._should_stop,
            on_step=self.on_step,
        )

    def _begin(self) -> float:
        """End the answer before, and forget a stop that was for it; when the next one was asked for."""
        self._end_running()
        self._stop_asked = False
        return time.perf_counter()

    def _answer(self, question: OpenQuestion) -> Generator[Piece, None, None]:
        """The pieces of the answer."""
        self._running = self._stream(question)
        return Pieces(self._read(self._running))

    def _read(self, running: Generator[Piece, None, bool]) -> Generator[Piece, None, None]:
        has_ended_itself = yield from running
        if not has_ended_itself and self._ended_by != threading.get_ident():
            raise ended_elsewhere()

    def _should_stop(self) -> bool:
        return self._stop_asked

    def _stream(self, question: OpenQuestion) -> Generator[Piece, None, bool]:
        try:
            yield from question.pieces(self.on_progress)
        except (GeneratorExit, KeyboardInterrupt):
            question.end()
            self._stop_asked = True  # who leaves does not wait for what is stored
            self._keep(question)
            raise
        self._keep(question)
        if not question.is_interrupted and not question.has_answer:
            raise question.failure()
        return True

    def _keep(self, question: OpenQuestion) -> None:
        """Keep the answer that has ended as `last`."""
        self._last = question.to_answer()

    def _end_half_read(self) -> None:
        # One that nobody has begun to read is still to be read.
        if self._running is not None and inspect.getgeneratorstate(self._running) != inspect.GEN_CREATED:
            self._end_running()

    def _end_running(self) -> None:
        with self._entry:
            if self._running is None:
                return
            try:
                self._running.close()
            except ValueError as error:
                if not is_in_use(error):
                    raise
                raise still_written() from error
            self._running, self._ended_by = None, threading.get_ident()
