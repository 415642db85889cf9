"""Sequences that are decoded in several threads share steps, and each gets the very bits as alone."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.experts.paged import PagedExperts
from ernie_local.model.ernie import ErnieModel, NextToken
from ernie_local.model.moe import RouteHook
from ernie_local.model.shared_steps import MOST_SEQUENCES
from tests.runtime.paged_models import build, ids, image_prompt, paged_experts, plan_of
from tests.runtime.test_threads import in_threads

BUDGETS = ("resident", "least", "some")


@pytest.fixture(autouse=True)
def _fixed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations and images take memory of their own: all of nano's experts would fit into it."""
    monkeypatch.setattr(PagedExperts, "make_room", lambda *_: None)


def paged(directory: Path, budget: str) -> ErnieModel:
    """Packed nano; experts have all memory, the least that there is, or some more of it."""
    if budget == "resident":
        return build(directory, None)
    plan = plan_of(directory)
    more = 0 if budget == "least" else (plan.most_bytes - plan.least_bytes) // 3
    return build(directory, plan.least_bytes + more)


def waits(model: ErnieModel) -> bool:
    """Whether a sequence waits for a step. One whose step is computed may not have looked yet."""
    return any(request.is_open for request in model.steps._waiting)


def check_missed(model: ErnieModel) -> None:
    """Decode has read pages, unless all are resident."""
    experts = model.experts
    assert not isinstance(experts, PagedExperts) or experts.stats.banks["text"].decode_misses > 20


class Steps:
    """Counts the sequences of each step that a model computes for several."""

    def __init__(self, model: ErnieModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        together = model.decode_together

        def decode_together(tokens: Sequence[NextToken], on_route: RouteHook | None = None) -> torch.Tensor:
            self.sizes.append(len(tokens))
            return together(tokens, on_route)

        monkeypatch.setattr(model, "decode_together", decode_together)


def talk(model: ErnieModel, seed: int) -> torch.Tensor:
    """A random conversation: prompts, images, answers, steps back. All logits."""
    choose = random.Random(seed)
    engine = Engine(model, 256, chunk_tokens=choose.choice([16, 64]))
    rows = [engine.prefill(ids(choose.randint(1, 30), seed))]
    for turn in range(3):
        before = engine.mark()
        rows += [engine.decode(token) for token in ids(choose.randint(1, 12), seed + turn)]
        if choose.random() < 0.4:
            engine.rewind(before)
        if choose.random() < 0.3:
            rows.append(engine.prefill(*image_prompt(model, seed + turn)))
    return torch.stack(rows)


@pytest.mark.parametrize("budget", BUDGETS)
def test_conversations_share_steps(packed_nano: Path, budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, alone = paged(packed_nano, budget), build(packed_nano, None)
    steps = Steps(model, monkeypatch)
    expected = [talk(alone, seed) for seed in range(4)]
    found = in_threads([partial(talk, model, seed) for seed in range(4)])
    assert all(map(torch.equal, found, expected))
    assert max(steps.sizes) > 2
    check_missed(model)


def decode_all(engine: Engine, tokens: Sequence[int]) -> torch.Tensor:
    return torch.stack([engine.decode(token) for token in tokens])


def test_more_sequences_than_a_step_has(packed_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token asks for other experts: more of a layer than the least memory has slots."""
    count = MOST_SEQUENCES + 3
    model = paged(packed_nano, "least")
    steps = Steps(model, monkeypatch)
    engines = [Engine(model, 32) for _ in range(count)]
    answers = [ids(8, seed) for seed in range(count)]
    alone = build(packed_nano, None)
    found = in_threads([partial(decode_all, *pair) for pair in zip(engines, answers, strict=True)])
    assert all(
        torch.equal(one, decode_all(Engine(alone, 32), answer))
        for one, answer in zip(found, answers, strict=True)
    )
    assert 8 < max(steps.sizes) <= MOST_SEQUENCES
    check_missed(model)
    assert not paged_experts(model).top.cache.has_pins


@pytest.mark.parametrize("bad_token", [-1, None], ids=["no token", "no room"])
def test_an_error_is_only_its_own(
    packed_nano: Path, bad_token: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(packed_nano, None)
    steps = Steps(model, monkeypatch)
    answer, expected = ids(12, 1), decode_all(Engine(model, 32), ids(12, 1))

    def fail() -> torch.Tensor:
        engine = Engine(model, 32 if bad_token is not None else 6)
        rows = [engine.decode(token) for token in answer[:6]]
        with pytest.raises(UsageError if bad_token is not None else DoesNotFit):
            engine.decode(30 if bad_token is None else bad_token)
        assert engine.length == 6
        if bad_token is not None:
            rows += [engine.decode(token) for token in answer[6:]]
        return torch.stack(rows)

    works: list[Callable[[], torch.Tensor]] = [fail]
    works += [partial(decode_all, Engine(model, 32), answer) for _ in range(2)]
    failed, *found = in_threads(works)
    assert all(torch.equal(one, expected) for one in found)
    assert torch.equal(failed, expected[: len(failed)])
    assert 3 in steps.sizes


class _Stop(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


def interrupted_after(seconds: float, run: Callable[[], object]) -> None:
    """Run in the main thread, and raise in it after so many seconds, if it is not done by then."""

    def interrupt(*_: object) -> None:
        raise _Stop

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with suppress(_Stop):
            run()
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, handler)


def decode_into(rows: list[torch.Tensor], engine: Engine, tokens: Sequence[int]) -> None:
    rows.extend(engine.decode(token) for token in tokens)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer")
@pytest.mark.parametrize("budget", ["resident", "some"])
def test_ctrl_c_while_others_go_on(packed_nano: Path, budget: str) -> None:
    model, is_over = paged(packed_nano, budget), threading.Event()
    answer = ids(20, 5)
    expected = decode_all(Engine(model, 32), answer)

    def go_on() -> bool:
        good = True
        while not is_over.is_set():
            good = good and torch.equal(decode_all(Engine(model, 32), answer), expected)
        return good

    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(go_on())) for _ in range(2)]
    for thread in threads:
        thread.start()
    choose = random.Random(7)
    for _ in range(12):
        engine, rows = Engine(model, 32), list[torch.Tensor]()
        interrupted_after(choose.uniform(0.001, 0.1), partial(decode_into, rows, engine, answer))
        assert engine.length - len(rows) in (0, 1)
        rows = rows[: engine.length]
        assert torch.equal(torch.stack(rows), expected[: len(rows)]) if rows else True
    is_over.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert found == [True, True]
    assert torch.equal(decode_all(Engine(model, 32), answer), expected)


def test_tokens_of_a_failed_step_are_decoded_alone(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has caused the error meets it again, and nobody else does."""
    model = paged(packed_nano, "some")
    steps = Steps(model, monkeypatch)
    together = model.decode_together

    def broken(tokens: Sequence[NextToken], on_route: RouteHook | None = None) -> torch.Tensor:
        together(tokens, on_route)
        raise UsageError("1 page is damaged", "as one of these tokens finds out", "try each alone")

    monkeypatch.setattr(model, "decode_together", broken)
    answer = ids(6, 3)
    expected = decode_all(Engine(build(packed_nano, None), 32), answer)
    found = in_threads([partial(decode_all, Engine(model, 32), answer) for _ in range(3)])
    assert all(torch.equal(one, expected) for one in found)
    assert steps.sizes


@pytest.mark.parametrize("budget", ["resident", "some"])
def test_answers_go_on_between_the_chunks_of_a_prompt(packed_nano: Path, budget: str) -> None:
    model = paged(packed_nano, budget)
    prompt, answer = ids(90, 1), ids(20, 2)
    expected = decode_all(Engine(model, 32), answer)
    reader, writer, found = Engine(model, 128, chunk_tokens=20), Engine(model, 32), list[torch.Tensor]()
    lengths: list[int] = []

    def note(_unit: str, num_done: int, _num_all: int) -> None:
        if not num_done:
            thread.start()
        while not waits(model):
            assert thread.is_alive()
        lengths.append(writer.length)

    thread = threading.Thread(target=decode_into, args=(found, writer, answer))
    logits = reader.prefill(prompt, on_progress=note)
    thread.join(60)
    assert not thread.is_alive()
    assert lengths == [0, 1, 2, 3, 4]
    assert torch.equal(logits, Engine(model, 128, chunk_tokens=20).prefill(prompt))
    assert torch.equal(torch.stack(found), expected)


def test_an_answer_goes_on_before_a_prompt_of_one_chunk(packed_nano: Path) -> None:
    model = build(packed_nano, None)
    reader, writer, found = Engine(model, 32), Engine(model, 32), list[torch.Tensor]()
    thread = threading.Thread(target=decode_into, args=(found, writer, ids(1, 2)))
    lengths: list[int] = []

    def see(*_: object) -> None:
        lengths.append(writer.length)

    def start(_unit: str, num_done: int, _num_all: int) -> None:
        if not num_done:
            thread.start()
            while not waits(model):
                assert thread.is_alive()

    with reader.reporting_routes(see):
        reader.prefill(ids(9, 1), on_progress=start)
    thread.join(60)
    assert not thread.is_alive()
    assert lengths[0] == 1


def test_an_answer_goes_on_between_images(packed_nano: Path) -> None:
    model = build(packed_nano, None)
    reader, writer, found = Engine(model, 128), Engine(model, 32), list[torch.Tensor]()
    prompt, images = image_prompt(model, 3, num_images=2)
    # One image after the other, too: beside others, products of torch may give an image other bits.
    expected = Engine(model, 128).prefill(prompt, images, lambda: False)
    thread = threading.Thread(target=decode_into, args=(found, writer, ids(20, 2)))
    lengths: list[int] = []

    def note(unit: str, num_done: int, _num_all: int) -> None:
        if unit == "images":
            if not num_done:
                thread.start()
            while not waits(model):
                assert thread.is_alive()
            lengths.append(writer.length)

    logits = reader.prefill(prompt, images, lambda: False, note)
    thread.join(60)
    assert lengths[1] >= 1
    assert torch.equal(logits, expected)


def test_any_error_of_one_sequence_is_only_its_own(packed_nano: Path) -> None:
    """A hook that raises what is no error of ours, in a step that a prompt computes for it."""
    model = build(packed_nano, None)
    reader, writer = Engine(model, 128, chunk_tokens=20), Engine(model, 32)
    writer.prefill(ids(3, 1))
    expected = Engine(model, 128, chunk_tokens=20).prefill(ids(90, 1))
    errors: list[ValueError] = []

    def bad(*_: object) -> None:
        raise ValueError("the hook of the answer")

    def answer() -> None:
        with writer.reporting_routes(bad):
            try:
                writer.decode(30)
            except ValueError as error:
                errors.append(error)

    thread = threading.Thread(target=answer)

    def note(_unit: str, num_done: int, _num_all: int) -> None:
        if not num_done:
            thread.start()
        while not waits(model) and thread.is_alive():
            pass

    assert torch.equal(reader.prefill(ids(90, 1), on_progress=note), expected)
    thread.join(60)
    assert len(errors) == 1
    assert writer.length == 3


def test_a_hook_cannot_decode(packed_nano: Path) -> None:
    model = build(packed_nano, None)
    engine, other = Engine(model, 32), Engine(model, 32)

    def ask(*_: object) -> None:
        other.decode(30)

    with engine.reporting_routes(ask), pytest.raises(UsageError, match="inside each other"):
        engine.decode(31)
    assert (engine.length, other.length) == (0, 0)
    assert torch.equal(engine.decode(31), other.decode(31))


def test_one_thread_may_decode_while_it_has_the_lock(packed_nano: Path) -> None:
    model = build(packed_nano, None)
    engine, has_begun, is_over = Engine(model, 64), threading.Event(), threading.Event()

    def other() -> None:
        engine = Engine(model, 64)
        has_begun.set()
        while not is_over.is_set():
            engine.decode(30)
            if engine.length == 64:
                engine = Engine(model, 64)

    thread = threading.Thread(target=other)
    thread.start()
    has_begun.wait(60)
    for _ in range(5):
        with model.lock:
            engine.decode(31)
    is_over.set()
    thread.join(60)
    assert not thread.is_alive()
    assert engine.length == 5


def test_plain_weights_are_decoded_one_after_the_other(packed_nano: Path) -> None:
    from ernie_local.checkpoint.hub import NANO_DIRECTORY

    assert build(packed_nano, None).joins_sequences
    assert not build(NANO_DIRECTORY, None).joins_sequences
