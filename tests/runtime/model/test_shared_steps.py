"""Requests of several threads are computed in common steps; none is lost, none is computed twice."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from ernie_local.model.shared_steps import MOST_SEQUENCES, Commit, SharedSteps, StepRequest
from tests.runtime.test_threads import in_threads


class Counter:
    """A sequence of which only the length is known."""

    length = 0


class Request(StepRequest):
    def __init__(self, owner: Counter, kind: str | None = "any") -> None:
        super().__init__(owner, kind)
        self.counter = owner
        self.before: int | None = None


class Machine:
    """Counts the tokens of steps; between the first and the last of a step, others may run."""

    def __init__(self, lock: threading.RLock | None = None) -> None:
        self.steps = SharedSteps[Request](lock or threading.RLock(), lambda: False)
        self.sizes: list[int] = []
        self.before_step: Callable[[], None] = lambda: None

    def compute(self, requests: Sequence[Request]) -> None:
        commit = Commit()
        try:
            self.before_step()
            for request in requests:
                if request.before is not None:
                    request.counter.length = request.before
                request.before = request.counter.length
                request.counter.length += 1
                request.commit = commit
            self.sizes.append(len(requests))
            commit.is_done = True
        except BaseException:
            for request in requests:
                if request.before is not None and not commit.is_done:
                    request.counter.length = request.before
                    request.before = None
            raise

    def ask(self, owner: Counter, kind: str | None = "any") -> None:
        self.steps.ask(Request(owner, kind), self.compute)


def test_threads_that_come_back_are_computed_together() -> None:
    machine, counters = Machine(), [Counter() for _ in range(5)]
    machine.before_step = partial(time.sleep, 0.001)  # as kernels, without Python's lock

    def run(counter: Counter) -> None:
        for _ in range(50):
            machine.ask(counter)

    in_threads([lambda one=one: run(one) for one in counters])  # type: ignore[misc]
    assert [one.length for one in counters] == [50] * 5
    assert sum(machine.sizes) == 250
    assert max(machine.sizes) > 2


def test_a_step_has_at_most_so_many_and_one_of_each_sequence() -> None:
    machine, shared = Machine(), Counter()
    in_threads([lambda: machine.ask(shared) for _ in range(4)])
    assert (shared.length, machine.sizes) == (4, [1] * 4)
    in_threads([lambda: machine.ask(Counter()) for _ in range(2 * MOST_SEQUENCES)])
    assert max(machine.sizes) <= MOST_SEQUENCES


def test_a_thread_returns_when_who_has_the_model_has_computed_for_it() -> None:
    """A thread that was about to lead a step must not wait for the end of a prompt that came before it."""
    lock, counter = threading.RLock(), Counter()
    machine = Machine(lock)
    with lock:
        thread = threading.Thread(target=machine.ask, args=(counter,))
        thread.start()
        while not counter.length:
            machine.steps.serve(machine.compute)
        thread.join(60)
        assert not thread.is_alive()
    assert machine.sizes == [1]


def test_other_kinds_are_computed_apart() -> None:
    machine = Machine()
    kinds = ["one", "other", None, None]

    def run(kind: str | None) -> None:
        for _ in range(10):
            machine.ask(Counter(), kind)

    in_threads([lambda kind=kind: run(kind) for kind in kinds])  # type: ignore[misc]
    assert machine.sizes == [1] * 40


def test_who_does_not_come_back_is_waited_for_once() -> None:
    """The thread that goes on takes part in every step, alone."""
    machine, gone = Machine(), Counter()
    both = threading.Barrier(2)

    def once() -> None:
        both.wait(60)
        machine.ask(gone)

    thread = threading.Thread(target=once)
    thread.start()
    stays = Counter()
    both.wait(60)
    for _ in range(20):
        machine.ask(stays)
    thread.join(60)
    assert (gone.length, stays.length) == (1, 20)


def test_one_thread_with_two_sequences_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, one, other = Machine(), Counter(), Counter()
    waited: list[float] = []
    find = machine.steps._seconds_to_wait

    def note(request: Request) -> float:
        waited.append(find(request))
        return waited[-1]

    monkeypatch.setattr(machine.steps, "_seconds_to_wait", note)
    for _ in range(10):
        machine.ask(one)
        machine.ask(other)
    assert waited == [0] * 20


def test_who_is_computed_alone_waits_for_nobody_and_is_not_waited_for() -> None:
    machine = Machine()
    asked, started = Request(Counter(), None), Request(Counter())
    in_threads([lambda: machine.ask(Counter())])
    machine.steps._patient_until = time.monotonic() + 60
    assert machine.steps._expected
    assert machine.steps._seconds_to_wait(started) > 0
    assert machine.steps._seconds_to_wait(asked) == 0
    machine.steps.ask(asked, machine.compute)
    assert not machine.steps._expected


def test_an_error_of_a_step_leaves_the_others_waiting() -> None:
    machine = Machine()
    left = [3]

    def fail() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("once for each of three")

    counters = [Counter() for _ in range(4)]
    machine.before_step = fail

    def run(counter: Counter) -> bool:
        try:
            machine.ask(counter)
        except RuntimeError:
            return False
        return True

    done = in_threads([lambda one=one: run(one) for one in counters])  # type: ignore[misc]
    assert sorted(done) == [False, False, False, True]
    assert [one.length for one in counters] == [int(one) for one in done]


class _Stop(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer")
def test_ctrl_c_at_any_moment() -> None:
    machine, is_over = Machine(), threading.Event()
    counters = [Counter() for _ in range(3)]
    asked = [0, 0, 0]

    def go_on(index: int) -> None:
        while not is_over.is_set():
            machine.ask(counters[index])
            asked[index] += 1

    def interrupt(*_: object) -> None:
        raise _Stop

    threads = [threading.Thread(target=go_on, args=(index,)) for index in range(3)]
    handler = signal.signal(signal.SIGALRM, interrupt)
    choose, num_stopped = random.Random(3), 0
    try:
        for thread in threads:
            thread.start()
        for _ in range(300):
            own = Counter()
            try:
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(0.0001, 0.004))
                while True:
                    machine.ask(own)
            except _Stop:
                num_stopped += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        is_over.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert num_stopped == 300
    assert [one.length for one in counters] == asked
    machine.ask(Counter())
    assert not machine.steps._waiting
