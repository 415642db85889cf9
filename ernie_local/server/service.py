"""Answers the questions of many clients with a few chats of one model: a queue, slots, events, cancelling.

A slot is a chat with its own KV cache and its own thread. A question goes to the free slot whose last
conversation it continues furthest, so that what was computed for it is used again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

from ernie_local.errors import NoAnswer
from ernie_local.progress import Pause
from ernie_local.sampling import SamplingOptions
from ernie_local.server.failures import ApiError, client_gone
from ernie_local.server.stop_texts import StopTexts
from ernie_local.session import Answer, Chat, ChatMessage, FinishReason, Piece, ToolCall
from ernie_local.structured import AnswerForm

RETRY_SECONDS = 5
SILENCE_SECONDS = 10.0


class Progress(NamedTuple):
    """How far a prompt is. unit: images, tokens, or model (bytes that are hashed)."""

    unit: str
    done: int
    work: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientQuestion:
    """What a client asks.

    messages: makes the conversation in the thread of the slot, as images are fetched and opened there, and
    calls the pause before each of them. keys: one for each message, equal for equal messages. prompt: in
    place of messages, what `Chat.complete` takes. is_call: whether what is in the form is a call of a tool.
    The rest is as of `Chat`.
    """

    keys: Sequence[object]
    sampling: SamplingOptions
    messages: Callable[[Pause], Sequence[ChatMessage]] = lambda _pause: ()
    prompt: str | Sequence[int] | None = None
    top_scores: int | None = None
    tools: Sequence[Mapping[str, object]] = ()
    thinking: bool | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    form: AnswerForm | None = None
    is_call: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """The question is sound, and the model computes."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing has happened for a while: the question waits, or its prompt is computed."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer has ended; finish_reason says how for the client, who may have named stop texts.

    tool_calls: those of the answer, or the one that the client asked for.
    """

    answer: Answer
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()


Event: TypeAlias = Begun | Silence | Piece | Ended


async def all_of(events: AsyncIterator[Event]) -> tuple[list[Piece], Ended]:
    """The pieces of a whole answer, and how it ended."""
    pieces: list[Piece] = []
    ended: Ended | None = None
    async for event in events:
        if isinstance(event, Piece):
            pieces.append(event)
        elif isinstance(event, Ended):
            ended = event
    assert ended is not None, "an answer ends, or raises"
    return pieces, ended


@dataclass(eq=False)
class _Job:
    """A question under way. `put` hands an event, an error, or None for the end to the client's loop."""

    question: ClientQuestion
    put: Callable[[Event | BaseException | None], object]
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def pause(self) -> None:
        """End the work where the client has gone."""
        if self.is_cancelled.is_set():
            raise client_gone()


class _Slot:
    """One chat in one thread."""

    def __init__(self, chat: Chat, number: int) -> None:
        self.chat = chat
        self.keys: Sequence[object] = ()
        self.progress: Progress | None = None
        self.num_pieces = 0
        self.chat.on_progress = self._show
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"answers-{number}")

    def shared(self, keys: Sequence[object]) -> int:
        """Messages at the beginning that the chat has seen in its last conversation."""
        pairs = zip(keys, self.keys, strict=False)
        return next(
            (count for count, (new, old) in enumerate(pairs) if new != old), min(len(keys), len(self.keys))
        )

    def start(self, job: _Job) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._run, job)

    def _show(self, unit: str, done: int, work: int) -> None:
        self.progress = Progress(unit, done, work)

    def close(self) -> None:
        self.chat.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def cancel(self, job: _Job) -> None:
        job.is_cancelled.set()
        self.chat.stop()

    def _run(self, job: _Job) -> None:
        try:
            self._answer(job)
        except BaseException as error:  # noqa: BLE001  (the client's task raises it)
            job.put(error)
        finally:
            self.progress = None
            job.put(None)

    def _answer(self, job: _Job) -> None:
        job.pause()
        question, chat = job.question, self.chat
        chat.sampling = question.sampling
        chat.writer.tools = tuple(question.tools)
        chat.top_scores = question.top_scores
        pieces = self._ask(job)
        # A stop before `send` had begun would be lost.
        job.pause()
        # Not before: a refused question leaves the conversation as it was.
        self.keys = question.keys
        job.put(Begun())
        stops = StopTexts(question.stops)
        try:
            for piece in pieces:
                self.progress = None
                self.num_pieces += 1
                shown = stops.push(piece) if piece.kind == "answer" else piece
                is_said = bool(shown.text or shown.scores)
                if is_said and not (question.is_call and piece.kind == "answer"):
                    job.put(shown)
                if stops.has_stopped:
                    pieces.close()
                    break
        except NoAnswer:
            pass  # `last` says why, and how many tokens it took
        answer = chat.last
        assert answer is not None
        held, calls = stops.finish(), answer.tool_calls
        if question.is_call:
            calls = () if answer.value is None else (ToolCall(**answer.value),)
        elif held.text or held.scores:
            job.put(held)
        answer = stops.named_in(answer)
        job.put(Ended(answer, "stop" if stops.has_stopped else answer.finish_reason, calls))

    def _ask(self, job: _Job) -> Generator[Piece, None, None]:
        question = job.question
        if question.prompt is not None:
            return self.chat.complete(question.prompt, question.max_tokens)
        messages = question.messages(job.pause)
        job.pause()
        return self.chat.send(
            messages,
            question.thinking,
            question.thinking_budget,
            question.max_tokens,
            schema=question.form,
        )


class Service:
    """Shares the slots among the clients. All methods belong to one event loop."""

    def __init__(self, chats: Sequence[Chat], max_waiting: int = 32) -> None:
        """chats: of one model, as many as questions are answered at once. max_waiting: that wait for one."""
        self.model = chats[0].model
        self.max_waiting = max_waiting
        self._slots = [_Slot(chat, number) for number, chat in enumerate(chats)]
        self._free = list(self._slots)
        self._waiting: deque[asyncio.Future[_Slot]] = deque()
        self._is_closing = False

    @property
    def num_running(self) -> int:
        """Questions that are answered now."""
        return len(self._slots) - len(self._free)

    @property
    def num_waiting(self) -> int:
        """Questions that wait for a slot."""
        return len(self._waiting)

    @property
    def progress(self) -> Progress | None:
        """How far the first of the prompts is that are read now; None where none is."""
        return next((slot.progress for slot in self._slots if slot.progress), None)

    @property
    def num_pieces(self) -> int:
        """Pieces of text that were written since the server began, about one for each token."""
        return sum(slot.num_pieces for slot in self._slots)

    async def answer(self, question: ClientQuestion) -> AsyncGenerator[Event, None]:
        """The events of one answer. Whoever stops reading cancels it.

        ApiError 503 where too many wait already; else what the library raises.
        """
        turn = self._take(question.keys)
        try:
            while not (await asyncio.wait([turn], timeout=SILENCE_SECONDS))[0]:
                yield Silence()
            slot = turn.result()
        except (asyncio.CancelledError, GeneratorExit):
            self._leave(turn)
            raise
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | BaseException | None]()
        job = _Job(question, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        running = slot.start(job)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), SILENCE_SECONDS)
                except TimeoutError:
                    event = Silence()
                if event is None or isinstance(event, BaseException):
                    # Whoever goes on with this conversation at once is to find its slot free.
                    await asyncio.shield(running)
                    if event is not None:
                        raise event
                    return
                yield event
        finally:
            slot.cancel(job)
            if running.done():
                self._give_back(slot)
            else:  # a client that has gone does not wait for the thread
                running.add_done_callback(lambda _: self._give_back(slot))

    def _take(self, keys: Sequence[object]) -> asyncio.Future[_Slot]:
        """A slot, now or later."""
        if self._is_closing:
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down")
        turn: asyncio.Future[_Slot] = asyncio.get_running_loop().create_future()
        if self._free:
            slot = max(self._free, key=lambda one: one.shared(keys))
            self._free.remove(slot)
            turn.set_result(slot)
        elif len(self._waiting) < self.max_waiting:
            self._waiting.append(turn)
        else:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"answers being written: {self.num_running}, questions waiting: {self.num_waiting}, the most "
                "that may",
                "busy",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        return turn

    def _leave(self, turn: asyncio.Future[_Slot]) -> None:
        """Give up a place in the queue, or a slot that was just taken."""
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn.done() and not turn.cancelled():
            self._give_back(turn.result())

    def _give_back(self, slot: _Slot) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self._free.append(slot)

    async def close(self) -> None:
        """Let nobody in, stop what runs, and wait for its threads."""
        self._is_closing = True
        while self._waiting:
            self._waiting.popleft().set_exception(
                ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down")
            )
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(None, slot.close) for slot in self._slots))
