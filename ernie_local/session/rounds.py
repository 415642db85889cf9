"""Answers one question in rounds: the model writes, the calls that it wrote are run, it reads what they gave.

A question without calls has one round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ernie_local.errors import NoAnswer, parameter
from ernie_local.loading import LoadedModel
from ernie_local.progress import OnProgress, StopQuestion
from ernie_local.sampling import Sampler
from ernie_local.session.answer import Answer, Timings, Usage, no_answer, peak_memory_bytes
from ernie_local.session.boxes import locate_boxes
from ernie_local.session.generation import AnswerOptions, Generation
from ernie_local.session.image import ChatImage
from ernie_local.session.messages import (
    CallRound,
    ChatMedia,
    ChatMessage,
    ChatTurn,
    check_begun,
    images_of,
    media_of,
    messages_of,
    with_instruction,
)
from ernie_local.session.sequence import CachedSequence
from ernie_local.session.times import locate_times
from ernie_local.session.tools import Toolbox, ToolContext, ToolStep, error_message
from ernie_local.session.video import ChatVideo
from ernie_local.session.writer import ChatWriter, check_fits, check_may_fit
from ernie_local.text.reasoning import Piece, PieceKind
from ernie_local.text.template import TextPrompt

_LEAST_ROOM = 64  # tokens that results of tools leave for the answer


@dataclass(frozen=True, slots=True)
class ChatParts:
    """What a chat answers with. on_step: is told of each call that was run."""

    model: LoadedModel
    writer: ChatWriter
    sequence: CachedSequence
    toolbox: Toolbox
    sampler: Sampler
    should_stop: StopQuestion
    on_step: Callable[[ToolStep], None] | None


class OpenQuestion:
    """A question until it is answered. Until it has ended otherwise, it counts as interrupted.

    generation: of the present round.
    """

    def __init__(
        self,
        parts: ChatParts,
        options: AnswerOptions,
        started: float,
        *,
        history: tuple[ChatTurn, ...] = (),
        messages: tuple[ChatMessage, ...] = (),
        begun: ChatMessage | None = None,
        plain: TextPrompt | None = None,
    ) -> None:
        """started: when it was asked. history: the turns before. messages: what is asked, with images opened.

        begun: an answer that goes on. plain: a prompt that no template has written, instead of messages; no
        turn comes of it. DoesNotFit where the context has no room for it.
        """
        self._parts, self._messages, self._options = parts, messages, options
        self._begun, self._plain = begun, plain
        self.history = history
        self._started, self._image_seconds = started, time.perf_counter() - started
        self._paging_before = self._paging_of_round = parts.model.paging
        self._rounds: list[CallRound] = []
        self._steps: list[ToolStep] = []
        self._ended: list[Generation] = []  # of the rounds before
        self._computed = self._restored = self._reused = 0  # in the rounds before
        self._last_call_is_refused = False
        context_size = parts.sequence.engine.context_size
        said = [*messages, *(message for turn in history for message in turn.messages())]
        said += [] if begun is None else [begun]
        texts = [text for message in said for text in (message.text, message.reasoning)]
        check_may_fit(texts, context_size, parts.writer.tokenizer.longest_bytes)
        prompt, media = self._prompt()
        check_fits(prompt, context_size)
        self._begin_round(prompt, media)

    def pieces(self, on_progress: OnProgress | None) -> Iterator[Piece]:
        """Run to the end. The texts of rounds are parted by blank lines."""
        parts, said = self._parts, set[PieceKind]()
        while True:
            prefill = partial(
                parts.sequence.advance_to, self._text_prompt, self._media, parts.should_stop, on_progress
            )
            parted = set(said)
            for piece in self.generation.pieces(parts.sequence, prefill, self._text_prompt.token_ids):
                if piece.text:  # one with scores may have none
                    if piece.kind in parted:
                        parted.discard(piece.kind)
                        yield Piece(piece.kind, "\n\n")
                    said.add(piece.kind)
                yield piece
            self._note_paging()
            if not self._goes_on() or not self._run_calls():
                return

    def end(self) -> None:
        """What was written until now is all; it counts as interrupted."""
        self.generation.end()
        self.generation.finish_reason = "interrupted"

    @property
    def is_plain(self) -> bool:
        """Whether no template has written its prompt."""
        return self._plain is not None

    @property
    def is_interrupted(self) -> bool:
        """Whether it was stopped before its end."""
        return self.generation.finish_reason == "interrupted"

    @property
    def has_answer(self) -> bool:
        """Whether there is text of an answer, or a call that whoever asked runs."""
        is_call_alone = not self.generation.text.strip()
        return self.generation.has_answer and not (self._last_call_is_refused and is_call_alone)

    def failure(self) -> NoAnswer:
        """The error for an end without an answer."""
        if not self._last_call_is_refused:
            return no_answer(self.generation)
        return NoAnswer(
            f"no answer after {len(self._steps)} calls of tools in {len(self._rounds)} rounds",
            f"{parameter('max_rounds', self._parts.toolbox.max_rounds)} ended them, and the model went on "
            "calling",
            f"a larger {parameter('max_rounds')}, or another question",
        )

    @property
    def _call_is_cut(self) -> bool:
        """Whether a call that the chat runs was stopped, or not begun: it is as if it were not said."""
        calls = self.generation.tool_calls
        return self.is_interrupted and bool(calls) and self._parts.toolbox.can_run(calls)

    def to_turn(self) -> ChatTurn | None:
        """The question with what the model wrote; None where that says nothing."""
        generation, (text, reasoning) = self.generation, self._written()
        has_begun = bool(generation.reasoning or self._rounds)
        has_answer = bool(text.strip()) if self._call_is_cut else self.has_answer
        if not has_answer and not (self.is_interrupted and has_begun):
            return None
        return ChatTurn(
            question=self._messages,
            answer=text,
            reasoning=reasoning,
            tool_calls=() if self._call_is_cut else generation.tool_calls,
            thinking=self._text_prompt.thought == "open",
            finish_reason=generation.finish_reason,
            rounds=tuple(self._rounds),
        )

    def to_answer(self) -> Answer:
        """What is known of the answer now."""
        parts, generation = self._parts, self.generation
        reuse, generations = parts.sequence.reuse, [*self._ended, self.generation]
        value, confidence = generation.find_value()
        asked, given = media_of(self._messages), images_of(messages_of(self._rounds))
        asked_images = [one for one in asked if isinstance(one, ChatImage)]
        asked_videos = [one for one in asked if isinstance(one, ChatVideo)]
        videos = [one for one in self._media if isinstance(one, ChatVideo)]
        text = "\n\n".join(one.text for one in generations if one.text)
        boxes, box_notes = locate_boxes(text, self._images, len(asked_images), len(given))
        paging = parts.model.paging
        return Answer(
            text=text,
            reasoning="\n\n".join(one.reasoning for one in generations if one.reasoning),
            tool_calls=() if self._call_is_cut else generation.tool_calls,
            finish_reason=generation.finish_reason,
            usage=Usage(
                prompt_tokens=len(self._text_prompt.token_ids),
                image_tokens=self._text_prompt.num_image_tokens,
                video_tokens=self._text_prompt.num_video_tokens,
                cached_tokens=max(0, reuse.cached_tokens - self._computed),
                completion_tokens=sum(one.num_tokens for one in generations),
                reasoning_tokens=sum(one.num_reasoning_tokens for one in generations),
                restored_tokens=reuse.restored_tokens + self._restored,
                reused_images=reuse.reused_images + self._reused,
            ),
            timings=Timings(
                image=self._image_seconds,
                prefill=sum(one.prefill_seconds for one in generations),
                decode=sum(one.decode_seconds for one in generations),
                total=time.perf_counter() - self._started,
            ),
            images=tuple(image.report for image in asked_images),
            seed=parts.sampler.seed,
            peak_memory_bytes=peak_memory_bytes(),
            paging=None
            if paging is None or self._paging_before is None
            else paging.since(self._paging_before),
            value=value,
            confidence=confidence,
            boxes=boxes,
            box_notes=box_notes,
            steps=tuple(self._steps),
            times=locate_times(text, videos, len(asked_videos)),
            videos=tuple(video.report for video in asked_videos),
        )

    def _prompt(self) -> tuple[TextPrompt, tuple[ChatMedia, ...]]:
        """The conversation with the opening of an answer, or its beginning, and all images and videos.

        Behind the question stands what is told of the form.
        """
        if self._plain is not None:
            return self._plain, ()
        writer, options, begun = self._parts.writer, self._options, self._begun
        before = [message for turn in self.history for message in turn.messages()]
        messages = [*before, *self._messages, *messages_of(self._rounds)]
        told = messages if options.form is None else with_instruction(messages, options.form.instruction)
        written, media = [message.for_template() for message in told], media_of(messages)
        if begun is None:
            thinking = writer.thinks_by_default if options.thinking is None else options.thinking
            return writer.prompt(written, thinking), media
        check_begun(begun, options.thinking, has_form=options.form is not None)
        return writer.begun_prompt(written, begun.for_template()), media

    def _begin_round(self, prompt: TextPrompt, media: tuple[ChatMedia, ...]) -> None:
        """Prepare everything that needs no model."""
        parts, patching = self._parts, time.perf_counter()
        own = set(media_of(self._messages)) | set(media_of(messages_of(self._rounds)))
        for one in set(parts.sequence.images_to_encode(prompt, media)) & own:
            one.patches()
        self._image_seconds += time.perf_counter() - patching
        self._text_prompt, self._media = prompt, media
        self._images = tuple(one for one in media if isinstance(one, ChatImage))
        self._paging_of_round = parts.model.paging
        options, used = self._options, sum(one.num_tokens for one in self._ended)
        if options.max_tokens is not None:
            options = replace(options, max_tokens=options.max_tokens - used)
        room = parts.sequence.engine.context_size - len(prompt.token_ids)
        thought = None if self.is_plain else prompt.thought
        self.generation = Generation(
            parts.writer, parts.sampler, options, room, parts.should_stop, thought, self._begun
        )

    def _written(self) -> tuple[str, str]:
        """Answer and reasoning of the present round, with the beginning that was given."""
        text, reasoning, begun = self.generation.text, self.generation.reasoning, self._begun
        return (text, reasoning) if begun is None else (begun.text + text, begun.reasoning + reasoning)

    def _goes_on(self) -> bool:
        """Whether calls are run now: only those of a turn that the model has ended itself."""
        generation, toolbox = self.generation, self._parts.toolbox
        calls = generation.tool_calls
        if generation.finish_reason != "stop" or not calls or not toolbox.can_run(calls):
            return False
        self._last_call_is_refused = len(self._rounds) > toolbox.max_rounds
        return not self._last_call_is_refused

    def _run_calls(self) -> bool:
        """Run the calls and begin the next round; False where there is none."""
        generation, parts = self.generation, self._parts
        steps: list[ToolStep] = []
        for call in generation.tool_calls:
            given = [step.result for step in steps]
            context = ToolContext(
                images=(*self._images, *images_of(given)),
                asked=images_of(self._messages),
                processor=parts.model.image_processor,
                context_size=parts.sequence.engine.context_size,
                should_stop=parts.should_stop,
            )
            number = len(self._rounds) + 1
            if number > parts.toolbox.max_rounds:
                told = f"no more than {number - 1} rounds of calls are possible: answer now, without a call"
                step = ToolStep(number, call, error_message(told), True, 0.0)
            else:
                step = parts.toolbox.run(number, call, context)
            if parts.should_stop():
                generation.finish_reason = "interrupted"
                return False
            steps.append(step)
        return self._read_results(steps)

    def _read_results(self, steps: Sequence[ToolStep]) -> bool:
        """Begin the round in which the model reads what the calls gave, as far as the context has room."""
        generation, context_size = self.generation, self._parts.sequence.engine.context_size
        results, begun = tuple(step.result for step in steps), self._begun
        self._rounds.append(CallRound(*self._written(), generation.tool_calls, results))
        self._begun = None  # it has ended with this round
        prompt, media = self._prompt()
        if len(prompt.token_ids) + _LEAST_ROOM > context_size:
            told = error_message(
                f"what the calls gave takes the chat to {len(prompt.token_ids)} tokens, and it may have "
                f"{context_size - _LEAST_ROOM}: ask for less, or answer without it"
            )
            steps = [replace(step, result=told, is_error=True, first_image=None) for step in steps]
            self._rounds[-1] = replace(self._rounds[-1], results=tuple(step.result for step in steps))
            prompt, media = self._prompt()
        for step in steps:
            if self._parts.on_step is not None:
                self._parts.on_step(step)
        self._steps += steps
        if len(prompt.token_ids) >= context_size:
            self._rounds.pop()
            self._begun = begun
            generation.finish_reason = "length"
            return False
        reuse = self._parts.sequence.reuse
        self._computed += len(self._text_prompt.token_ids) - reuse.cached_tokens
        self._restored += reuse.restored_tokens
        self._reused += reuse.reused_images
        self._ended.append(generation)
        self._begin_round(prompt, media)
        return True

    def _note_paging(self) -> None:
        """Keep with the calls what it cost to read what they gave."""
        paging, before, number = self._parts.model.paging, self._paging_of_round, len(self._rounds)
        if paging is not None and before is not None:
            cost = paging.since(before)
            self._steps = [
                replace(step, paging=cost) if step.round == number else step for step in self._steps
            ]
