"""Slots, the queue and cancelling, with chats that answer as slowly as a test wants."""

from __future__ import annotations

import asyncio
import threading
import time
import types
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

import pytest

from ernie_local.errors import UsageError
from ernie_local.progress import Pause
from ernie_local.sampling import SamplingOptions
from ernie_local.server import service as service_module
from ernie_local.server.failures import ApiError
from ernie_local.server.service import Begun, ClientQuestion, Ended, Event, Service, Silence
from ernie_local.session import ChatMessage, Piece

_SECONDS = 10.0


class SlowChat:
    """A chat whose answers are the words of the question, each when the test lets it go."""

    made: ClassVar[list[SlowChat]] = []
    may_go: ClassVar[threading.Semaphore] = threading.Semaphore(0)

    model = None

    def __init__(self) -> None:
        self.last: Any = None
        self.writer = types.SimpleNamespace(tools=())
        self.stopped = threading.Event()
        self.asked: list[str] = []
        self.made.append(self)

    def send(self, messages: Sequence[ChatMessage], *_: object, **__: object) -> Iterator[Piece]:
        """Refuses an empty question."""
        self.stopped.clear()
        if not messages[-1].text:
            raise UsageError("nothing", "is asked", "ask")
        self.asked.append(messages[-1].text)
        return self._pieces(messages[-1].text.split())

    def _pieces(self, words: list[str]) -> Iterator[Piece]:
        self.last = types.SimpleNamespace(finish_reason="interrupted", tool_calls=())
        for word in words:
            while not self.may_go.acquire(timeout=0.01):
                if self.stopped.is_set():
                    return
            yield Piece("answer", word)
        self.last = types.SimpleNamespace(finish_reason="stop", tool_calls=())

    def stop(self) -> None:
        """As of Chat."""
        self.stopped.set()


@pytest.fixture(autouse=True)
def _slow_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlowChat, "made", [])
    monkeypatch.setattr(SlowChat, "may_go", threading.Semaphore(0))


def question(text: str, keys: Sequence[object] | None = None) -> ClientQuestion:
    """A question of one message."""
    return ClientQuestion(
        messages=lambda _pause: [ChatMessage("user", text)], keys=keys or [text], sampling=SamplingOptions()
    )


def go(num_words: int) -> None:
    """Let so many words go."""
    SlowChat.may_go.release(num_words)


async def collected(service: Service, asked: ClientQuestion) -> list[Event]:
    """All events."""
    return [event async for event in service.answer(asked)]


def run(
    test: Callable[[Service], Coroutine[Any, Any, None]], num_slots: int = 1, max_waiting: int = 2
) -> None:
    """Run a test with a service, which is closed then."""

    async def body() -> None:
        chats: Any = [SlowChat() for _ in range(num_slots)]
        service = Service(chats, max_waiting)
        try:
            async with asyncio.timeout(_SECONDS):
                await test(service)
        finally:
            await service.close()

    asyncio.run(body())


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread does."""
    while not condition():
        await asyncio.sleep(0.001)


def test_events_come_in_their_order() -> None:
    async def test(service: Service) -> None:
        go(2)
        first, *pieces, last = await collected(service, question("a b"))
        assert isinstance(first, Begun)
        assert pieces == [Piece("answer", "a"), Piece("answer", "b")]
        assert isinstance(last, Ended)
        assert last.finish_reason == "stop"

    run(test)


def test_who_comes_first_is_answered_first_and_too_many_are_refused() -> None:
    async def test(service: Service) -> None:
        running = [asyncio.create_task(collected(service, question(text))) for text in "abc"]
        await until(lambda: service.num_waiting == 2)
        with pytest.raises(ApiError, match="questions waiting: 2") as refused:
            await collected(service, question("d"))
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"]
        go(3)
        await asyncio.gather(*running)
        assert SlowChat.made[0].asked == ["a", "b", "c"]
        await until(lambda: service.num_running == 0)

    run(test)


def test_a_client_that_goes_frees_its_slot() -> None:
    async def test(service: Service) -> None:
        async with aclosing(service.answer(question("a b"))) as events:
            assert isinstance(await anext(events), Begun)
            waiting = asyncio.create_task(collected(service, question("c")))
            await until(lambda: service.num_waiting == 1)
        await until(lambda: SlowChat.made[0].asked == ["a b", "c"])
        go(1)
        assert isinstance((await waiting)[-1], Ended)

    run(test)


def test_a_client_that_goes_while_its_images_are_fetched_is_not_answered() -> None:
    """A stop is for a question that the chat has; before, nothing more is fetched."""

    async def test(service: Service) -> None:
        fetching, has_gone, fetched = threading.Event(), threading.Event(), list[int]()

        def messages(pause: Pause, num_images: int) -> list[ChatMessage]:
            for number in range(num_images):
                pause()
                fetched.append(number)
                fetching.set()
                assert has_gone.wait(_SECONDS)
            return [ChatMessage("user", "never")]

        for num_images in (2, 1):
            for event in (fetching, has_gone):
                event.clear()
            fetched.clear()
            makes = partial(messages, num_images=num_images)
            asked = ClientQuestion(messages=makes, keys=["a"], sampling=SamplingOptions())
            client = asyncio.ensure_future(collected(service, asked))
            await until(fetching.is_set)
            client.cancel()
            await asyncio.wait([client])
            has_gone.set()
            await until(lambda: service.num_running == 0)
            assert fetched == [0]
        assert SlowChat.made[0].asked == []

    run(test)


def test_a_client_that_goes_while_it_waits_leaves_the_queue() -> None:
    async def test(service: Service) -> None:
        running = asyncio.create_task(collected(service, question("a")))
        await until(lambda: service.num_running == 1)
        waiting = asyncio.create_task(collected(service, question("b")))
        await until(lambda: service.num_waiting == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert service.num_waiting == 0
        go(1)
        await running
        assert SlowChat.made[0].asked == ["a"]

    run(test)


def test_a_cancelled_turn_that_was_just_given_is_given_on() -> None:
    async def test(service: Service) -> None:
        first = asyncio.create_task(collected(service, question("a")))
        await until(lambda: service.num_running == 1)
        second = asyncio.create_task(collected(service, question("b")))
        await until(lambda: service.num_waiting == 1)
        third = asyncio.create_task(collected(service, question("c")))
        await until(lambda: service.num_waiting == 2)
        go(1)
        await first
        second.cancel()
        go(2)
        assert isinstance((await third)[-1], Ended)
        await asyncio.gather(second, return_exceptions=True)
        await until(lambda: service.num_running == 0)

    run(test)


def test_a_refusal_of_the_library_reaches_the_client_and_frees_the_slot() -> None:
    async def test(service: Service) -> None:
        with pytest.raises(UsageError):
            await collected(service, question(""))
        go(1)
        assert isinstance((await collected(service, question("a")))[-1], Ended)

    run(test)


def test_a_conversation_goes_to_the_slot_that_knows_it() -> None:
    async def test(service: Service) -> None:
        go(9)
        first = service.answer(question("a b"))
        await anext(first)
        await collected(service, question("other"))
        await collected(service, question("last"))
        assert [one async for one in first if isinstance(one, Ended)]
        # Both are free, and the second slot was used after the first.
        for keys in (["a b", "answer", "more"], ["last", "answer", "more"]):
            await until(lambda: service.num_running == 0)
            await collected(service, question("more", keys))
            knows = next(chat for chat in SlowChat.made if keys[0] in chat.asked)
            assert knows.asked[-1] == "more"

    run(test, num_slots=2)


def test_silence_is_told_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "SILENCE_SECONDS", 0.01)

    async def test(service: Service) -> None:
        running, waiting = (service.answer(question(text)) for text in "ab")
        assert isinstance(await anext(running), Begun)
        assert isinstance(await anext(running), Silence)
        assert isinstance(await anext(waiting), Silence)
        go(2)
        for events in (running, waiting):
            assert [one async for one in events if isinstance(one, Ended)]

    run(test)


def test_closing_ends_what_runs_and_refuses_what_waits() -> None:
    async def test(service: Service) -> None:
        running = asyncio.create_task(collected(service, question("a b")))
        await until(lambda: service.num_running == 1)
        waiting = asyncio.create_task(collected(service, question("c")))
        await until(lambda: service.num_waiting == 1)
        await service.close()
        last = (await running)[-1]
        assert isinstance(last, Ended)
        assert last.finish_reason == "interrupted"
        with pytest.raises(ApiError, match="shutting down"):
            await waiting
        with pytest.raises(ApiError, match="shutting down"):
            await collected(service, question("d"))

    run(test)


def test_a_slot_is_free_when_its_answer_has_ended() -> None:
    """So that the next question about the same finds what was computed."""

    async def test(service: Service) -> None:
        for number in range(20):
            go(1)
            await collected(service, question(f"{number}", ["same", number]))
            assert service.num_running == 0
        assert [len(chat.asked) for chat in SlowChat.made] == [20, 0]

    run(test, num_slots=2)


def test_a_refused_question_leaves_its_slot_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = service_module._Slot._run

    def answer_slowly(slot: Any, job: Any) -> None:
        answered(slot, job)
        time.sleep(0.05)  # until the slot is free again

    monkeypatch.setattr(service_module._Slot, "_run", answer_slowly)

    async def test(service: Service) -> None:
        go(3)
        await collected(service, question("first", ["same"]))
        first = SlowChat.made[0]
        assert first.asked == ["first"]
        for key in ("of the one slot", "of the other"):
            with pytest.raises(UsageError):
                await collected(service, question("", [key]))
        await collected(service, question("more", ["same", "answer", "more"]))
        assert first.asked == ["first", "more"]

    run(test, num_slots=2)
