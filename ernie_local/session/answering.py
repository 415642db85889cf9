"""Runs the answers of one sequence, one at a time, and ends each rightly, however its reader leaves it."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ernie_local.errors import UsageError
from ernie_local.loading import LoadedModel
from ernie_local.model.limits import check_ids
from ernie_local.progress import OnProgress
from ernie_local.sampling import Sampler, SamplingOptions, model_sampling
from ernie_local.session.answer import Answer, OpenQuestion, no_answer
from ernie_local.session.generation import AnswerOptions, Generation
from ernie_local.session.pieces import Pieces, is_in_use
from ernie_local.session.sequence import CachedSequence
from ernie_local.session.writer import ChatWriter, check_fits
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
        tools: Sequence[Mapping[str, object]],
    ) -> None:
        self.model = model
        self.sampling = model_sampling(model.files.generation_config) if sampling is None else sampling
        self.top_scores: int | None = None
        self.writer = ChatWriter(model.files, system, tools, variant)
        self._last: Answer | None = None
        self._sequence = CachedSequence(model.engine(), model.config, model.results)
        self._running: Generator[Piece, None, bool] | None = None
        self._entry = threading.RLock()
        self._ended_by = 0  # the thread that last made an answer count as interrupted
        # A plain flag, as a signal handler may set it at any moment: an Event would lock.
        self._stop_asked = False
        #: Gets "images", "tokens", or "model" (bytes that are hashed), how many are done, and all of them.
        self.on_progress: OnProgress | None = None

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
            self._end_running()
            started = time.perf_counter()
            written = self.writer.plain(prompt) if isinstance(prompt, str) else TextPrompt(tuple(prompt))
            self._stop_asked = False
            self._check_ids(written.token_ids)
            check_fits(written, self._sequence.engine.context_size)
            opened = OpenQuestion(
                prompt=written,
                sampler=Sampler(self.sampling, self.model.network.dtype),
                started=started,
                paging_before=self.model.paging,
                is_plain=True,
            )
            return self._answer(opened, AnswerOptions(max_tokens=max_tokens))

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        """UsageError for ids that no text has, or only together with an image."""
        media = self.model.config.media
        num_places = sum(token_id in (media.image, media.video) for token_id in token_ids)
        if num_places or not token_ids:
            raise UsageError(
                f"a prompt of {len(token_ids)} tokens, {num_places} of them places of images",
                "a completion goes on with text, and needs at least 1 token of it",
                "ask about images in a chat",
            )
        check_ids(token_ids, self.model.config.text.vocab_size)

    def _answer(self, question: OpenQuestion, options: AnswerOptions) -> Generator[Piece, None, None]:
        """The pieces of the answer to a prompt that fits."""
        generation = Generation(
            self.writer,
            question.sampler,
            replace(options, top_scores=self.top_scores),
            self._sequence.engine.context_size - len(question.prompt.token_ids),
            self._should_stop,
            None if question.is_plain else question.prompt.thought,
            question.begun,
        )
        self._running = self._stream(question, generation)
        return Pieces(self._read(self._running))

    def _read(self, running: Generator[Piece, None, bool]) -> Generator[Piece, None, None]:
        has_ended_itself = yield from running
        if not has_ended_itself and self._ended_by != threading.get_ident():
            raise UsageError(
                "another thread has used the chat before this answer was read to its end",
                "a chat has one answer at a time, and the next use ends the one before",
                "make a chat for each thread: they may share the model",
            )

    def _should_stop(self) -> bool:
        return self._stop_asked

    def _stream(self, question: OpenQuestion, generation: Generation) -> Generator[Piece, None, bool]:
        prompt, images = question.prompt, question.all_images
        prefill = partial(self._sequence.advance_to, prompt, images, self._should_stop, self.on_progress)
        try:
            yield from generation.pieces(self._sequence, prefill, prompt.token_ids)
        except (GeneratorExit, KeyboardInterrupt):
            generation.end()
            self._stop_asked = True  # who leaves does not wait for what is stored
            self._keep(question, generation)
            raise
        self._keep(question, generation)
        if generation.finish_reason != "interrupted" and not generation.has_answer:
            raise no_answer(generation)
        return True

    def _keep(self, question: OpenQuestion, generation: Generation) -> None:
        """Keep the answer that has ended as `last`."""
        self._last = question.to_answer(generation, self._sequence.reuse, self.model.paging)

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
                raise UsageError(
                    "an answer is still being written",
                    "a chat has one answer at a time",
                    "call stop() first, or make a chat for each thread: they may share the model",
                ) from error
            self._running, self._ended_by = None, threading.get_ident()
