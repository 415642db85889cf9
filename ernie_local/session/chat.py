"""A conversation with a loaded model: ask, read the pieces of the answer, undo, save, go on later.

Owns what happens to the history when an answer ends, early or not. Knows nothing of terminals.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from PIL import Image

from ernie_local.errors import NoAnswer, UsageError
from ernie_local.experts.options import PagingStats
from ernie_local.media.open_image import OpenedImage
from ernie_local.sampling import Sampler, SamplingOptions, model_sampling
from ernie_local.session.answer import Answer, Timings, Usage, peak_memory_bytes
from ernie_local.session.conversation import Conversation, check_fits
from ernie_local.session.generation import Generation, find_limits
from ernie_local.session.image import (
    ChatImage,
    ChatImageSource,
    make_patches,
    open_chat_images,
)
from ernie_local.session.sequence import CachedSequence
from ernie_local.session.transcript import AskerRole, SavedChat, Turn, read_saved_chat, write_chat
from ernie_local.text.reasoning import Piece, ReasoningParser
from ernie_local.text.template import Message, Prompt

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class _Question:
    """Everything about a question that is settled before the model computes."""

    role: AskerRole
    text: str
    thinking: bool
    images: tuple[ChatImage, ...]  # of this turn
    all_images: tuple[ChatImage, ...]  # of the whole conversation
    prompt: Prompt
    sampler: Sampler
    started: float
    image_seconds: float
    cached_tokens: int
    paging_before: PagingStats | None


class Chat:
    """A conversation. Not for use from several threads at once, but for `stop`.

    model: the model that answers. sampling: how tokens are chosen from the next question on.
    An answer whose pieces were left half read is ended, as interrupted, by the next use of the chat.
    """

    def __init__(
        self,
        model: LoadedModel,
        system: str | None = None,
        sampling: SamplingOptions | None = None,
        *,
        variant: str | None = None,
        tools: Sequence[Mapping[str, object]] = (),
    ) -> None:
        """system: the system text; None is the model's own, "" is none. sampling: None is as the model's
        generation_config.json says, greedy where it says nothing.

        variant: the chat template, "pt" or "thinking"; None as the model's files say. tools: descriptions,
        as JSON values, of functions that a Thinking model may call.
        Raises ModelUnusable where the tokenizer is missing or another model's, UsageError for tools with PT.
        """
        self.model = model
        self.sampling = model_sampling(model.files.generation_config) if sampling is None else sampling
        self._last: Answer | None = None
        self._conversation = Conversation(model.files, system, tools, variant)
        self._sequence = CachedSequence(model.engine(), model.config)
        self._running: Generator[Piece, None, None] | None = None
        # A plain flag, as a signal handler may set it at any moment: an Event would lock.
        self._stop_asked = False

    @property
    def system(self) -> str | None:
        """The system text as it was given."""
        return self._conversation.system

    @property
    def history(self) -> tuple[Turn, ...]:
        """The turns so far, interrupted ones included."""
        self._end_half_read()
        return tuple(self._conversation.turns)

    @property
    def last(self) -> Answer | None:
        """The answer that ended last, also an interrupted or an empty one; None before the first."""
        self._end_half_read()
        return self._last

    def ask(
        self,
        text: str,
        images: Iterable[ChatImageSource] | ChatImageSource = (),
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        max_tokens: int | None = None,
        *,
        role: AskerRole = "user",
    ) -> Generator[Piece, None, None]:
        """Ask about text and images; yields reasoning and answer in pieces, as the model writes them.

        The call itself opens the images and checks everything; the model computes while pieces are read.
        images: what `open_images` takes, or what it gave; they stand before the text. thinking: None is what
        the model was made for. thinking_budget: tokens after which a thought is closed. max_tokens: most
        tokens of thought and answer together; a share of them is kept for the answer. role "tool" hands in
        what a tool gave.

        Raises UsageError, InputUnreadable, and DoesNotFit with the tokens of the prompt and of the context;
        after the last piece NoAnswer where no answer came, which leaves the history as it was. Ctrl-C, `stop`
        and `close` on the pieces keep what came until then as an interrupted turn.
        """
        self._end_running()
        self._stop_asked = False
        started = time.perf_counter()
        _check_question(text, role, max_tokens, thinking_budget)
        new_images = tuple(open_chat_images(_as_several(images), self.model.image_processor))
        image_seconds = time.perf_counter() - started
        thinking = self._conversation.thinks_by_default if thinking is None else thinking
        message = Message(role, text, tuple(image.num_tokens for image in new_images))
        prompt = self._conversation.prompt(message, thinking)
        check_fits(prompt, self._sequence.engine.context_size)
        image_seconds += make_patches(new_images)
        all_images = (*self._conversation.images(), *new_images)
        question = _Question(
            role=role,
            text=text,
            thinking=thinking,
            images=new_images,
            all_images=all_images,
            prompt=prompt,
            sampler=Sampler(self.sampling),
            started=started,
            image_seconds=image_seconds,
            cached_tokens=self._sequence.kept_length(prompt, all_images),
            paging_before=self.model.paging,
        )
        self._running = self._stream(question, self._generation(question, max_tokens, thinking_budget))
        return self._running

    def stop(self) -> None:
        """End the running answer after the token at hand; also from another thread or a signal handler."""
        self._stop_asked = True

    def undo(self) -> Turn:
        """Forget the last question and its answer, and give them back; UsageError where there is none."""
        self._end_running()
        if not self._conversation.turns:
            raise UsageError("there is nothing to undo", "the chat has 0 turns", "ask something first")
        turn = self._conversation.turns.pop()
        self._sequence.trim(self._conversation.prompt(None), self._conversation.images())
        return turn

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chat as JSON, images by their paths; UsageError for an image that has none."""
        conversation = self._conversation
        write_chat(
            Path(path), conversation.system, conversation.tools, self.history, str(self.model.directory)
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: LoadedModel,
        sampling: SamplingOptions | None = None,
        *,
        variant: str | None = None,
    ) -> Chat:
        """Continue a saved chat; its images are opened now, and computed with the next question.

        InputUnreadable where the file, or an image that it names, is missing, broken or another by now.
        """
        return cls.resume(read_saved_chat(path, model.files), model, sampling, variant=variant)

    @classmethod
    def resume(
        cls,
        saved: SavedChat,
        model: LoadedModel,
        sampling: SamplingOptions | None = None,
        *,
        variant: str | None = None,
    ) -> Chat:
        """Continue a chat that `read_saved_chat` has read."""
        chat = cls(model, saved.system, sampling, variant=variant, tools=saved.tools)
        chat._conversation.turns.extend(saved.turns)
        return chat

    def _generation(
        self, question: _Question, max_tokens: int | None, thinking_budget: int | None
    ) -> Generation:
        conversation = self._conversation
        room = self._sequence.engine.context_size - len(question.prompt.token_ids)
        return Generation(
            conversation.tokenizer,
            question.sampler,
            ReasoningParser(in_reasoning=question.thinking, with_tools=bool(conversation.tools)),
            find_limits(room, max_tokens, thinking_budget, len(conversation.close_ids)),
            conversation.stop_ids,
            conversation.close_ids,
            lambda: self._stop_asked,
        )

    def _stream(self, question: _Question, generation: Generation) -> Generator[Piece, None, None]:
        try:
            yield from generation.pieces(
                self._sequence,
                lambda: self._sequence.advance_to(
                    question.prompt, question.all_images, lambda: self._stop_asked
                ),
                question.prompt.token_ids,
            )
        except (GeneratorExit, KeyboardInterrupt):
            generation.end()
            self._settle(question, generation)
            raise
        self._settle(question, generation)
        if generation.finish_reason != "interrupted" and not _has_answer(generation):
            raise _no_answer(generation)

    def _settle(self, question: _Question, generation: Generation) -> None:
        """Take the answer that has ended into `last`, and into the history where it says anything."""
        self._last = _to_answer(question, generation, self.model.paging)
        is_interrupted = generation.finish_reason == "interrupted"
        if _has_answer(generation) or (is_interrupted and generation.reasoning):
            turn = Turn(
                role=question.role,
                text=question.text,
                images=question.images,
                thinking=question.thinking,
                answer=generation.text,
                reasoning=generation.reasoning,
                tool_calls=generation.tool_calls,
                finish_reason=generation.finish_reason,
            )
            self._conversation.turns.append(turn)

    def _end_half_read(self) -> None:
        # One that nobody has begun to read is still to be read.
        if self._running is not None and inspect.getgeneratorstate(self._running) != inspect.GEN_CREATED:
            self._end_running()

    def _end_running(self) -> None:
        if self._running is None:
            return
        try:
            self._running.close()
        except ValueError as error:  # Python's word for a generator that another thread is in
            raise UsageError(
                "an answer is still being written", "a chat has one answer at a time", "call stop() first"
            ) from error
        self._running = None


def _as_several(images: Iterable[ChatImageSource] | ChatImageSource) -> Iterable[ChatImageSource]:
    # One image alone is forgiven: a string is a sequence of strings, and an array one of arrays.
    is_one = isinstance(images, str | bytes | os.PathLike | OpenedImage | ChatImage | Image.Image)
    if is_one or hasattr(images, "__array__"):
        return [cast("ChatImageSource", images)]
    return cast("Iterable[ChatImageSource]", images)


def _check_question(text: str, role: str, max_tokens: int | None, thinking_budget: int | None) -> None:
    if role not in get_args(AskerRole) or not text.strip():
        raise UsageError(
            f"a question of {len(text)} characters from {role!r}",
            f"it must have text and come from {' or '.join(get_args(AskerRole))}",
            'ask("What is the total?", images=["invoice.png"])',
        )
    for name, value, least in (("max_tokens", max_tokens, 1), ("thinking_budget", thinking_budget, 0)):
        if value is not None and value < least:
            raise UsageError(
                f"{name} {value} cannot be used", f"it must be {least} or more", f"{name}={max(least, 256)}"
            )


def _to_answer(question: _Question, generation: Generation, paging: PagingStats | None) -> Answer:
    before = question.paging_before
    return Answer(
        text=generation.text,
        reasoning=generation.reasoning,
        tool_calls=generation.tool_calls,
        finish_reason=generation.finish_reason,
        usage=Usage(
            prompt_tokens=len(question.prompt.token_ids),
            image_tokens=sum(span.end - span.start for span in question.prompt.images),
            cached_tokens=question.cached_tokens,
            completion_tokens=generation.num_tokens,
            reasoning_tokens=generation.num_reasoning_tokens,
        ),
        timings=Timings(
            image=question.image_seconds,
            prefill=generation.prefill_seconds,
            decode=generation.decode_seconds,
            total=time.perf_counter() - question.started,
        ),
        images=tuple(image.report for image in question.images),
        seed=question.sampler.seed,
        peak_memory_bytes=peak_memory_bytes(),
        paging=None if paging is None or before is None else paging.since(before),
    )


def _has_answer(generation: Generation) -> bool:
    return bool(generation.text.strip() or generation.tool_calls)


def _no_answer(generation: Generation) -> NoAnswer:
    num_tokens, num_reasoning = generation.num_tokens, generation.num_reasoning_tokens
    if generation.finish_reason == "length":
        why = "max_tokens or the context ended it before the answer began"
        hint = "a larger max_tokens or context size, a smaller thinking budget, or thinking off"
    else:
        why = "the model ended its turn without one"
        hint = "ask in other words, or with another temperature or seed"
    return NoAnswer(f"no answer after {num_tokens} tokens, {num_reasoning} of them reasoning", why, hint)
