"""Joins what several threads ask of one model at about the same time: one of them computes it for all.

Where Ctrl-C may come, in the main thread, locks are taken by plain `with` statements, which it cannot leave
locked; a thread that waits looks again after a while, so that nothing depends on one that Ctrl-C hit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

# Of one step. Up to so many rows, kernels give each row the same bits as alone (kernels/operators.py).
MOST_SEQUENCES = 16
# Who took part in the last step is waited for, this share of its time, within these bounds: a step for all
# reads weights once. Who does not come is not waited for again before it has come.
_PATIENCE, _LEAST_SECONDS, _MOST_SECONDS = 0.5, 0.005, 0.1
_LOOK_AGAIN_SECONDS = 0.05


class Commit:
    """Makes all results of a step valid at once, by one assignment."""

    is_done = False


class StepRequest:
    """What a thread wants of a step. is_alone: whether it is to be computed without others."""

    def __init__(self, owner: object, kind: Hashable | None) -> None:
        """owner: the sequence; a step has one request of it. kind: equal for those that may be joined."""
        self.owner = owner
        self.kind = kind
        self.is_alone = kind is None
        self.is_withdrawn = False
        self.commit = Commit()
        self.thread = threading.get_ident()
        self.wake = threading.Lock()  # released when there is something to look at
        self.wake.acquire()

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self.commit.is_done

    @property
    def is_open(self) -> bool:
        """Whether a thread still waits for a result."""
        return not (self.is_done or self.is_withdrawn)


_Request = TypeVar("_Request", bound=StepRequest)


@contextmanager
def _held_soon(lock: threading.RLock) -> Iterator[bool]:
    """Inside, whether this thread has the lock; it waits long for it in the main thread only."""
    if threading.current_thread() is threading.main_thread():
        with lock:
            yield True
        return
    is_held = lock.acquire(timeout=_LOOK_AGAIN_SECONDS)
    try:
        yield is_held
    finally:
        if is_held:
            lock.release()


class SharedSteps(Generic[_Request]):
    """The requests of one model that wait for a step."""

    def __init__(self, lock: threading.RLock, is_busy: Callable[[], bool]) -> None:
        """lock: of the model; a thread may take it again that has it. is_busy: whether one computes with it.

        `wake` is to be called when that has ended.
        """
        self._lock = lock
        self._is_busy = is_busy
        self._stepping = threading.Lock()  # while a step is computed
        self._mutex = threading.Lock()  # of what follows
        self._waiting: list[_Request] = []  # until they are done
        self._expected: frozenset[int] = frozenset()  # threads
        self._patient_until = 0.0

    def ask(self, request: _Request, compute: Callable[[Sequence[_Request]], None]) -> None:
        """Return when the request is done: by `compute` here, with others that wait, or by another thread.

        compute: computes a step, or raises. Requests that it leaves undone wait on, those of which it has
        made `is_alone` true for steps of their own.
        """
        try:
            with self._mutex:
                self._waiting.append(request)
            while not request.is_done:
                seconds = self._seconds_to_wait(request)
                if seconds > 0:
                    request.wake.acquire(timeout=seconds)
                else:
                    self._lead(request, compute)
        except BaseException:
            request.is_withdrawn = True
            raise
        finally:
            with self._mutex:
                self._waiting = [one for one in self._waiting if one is not request]

    def serve(self, compute: Callable[[Sequence[_Request]], None]) -> None:
        """Compute a step for those that wait, in a thread that has the model, between parts of its work."""
        if not self._waiting:
            return
        with self._mutex:
            first = next((one for one in self._waiting if one.is_open and not one.is_alone), None)
        if first is not None:
            try:
                self._compute(first, compute)
            finally:
                self.wake()

    def wake(self) -> None:
        """Have all that wait look again."""
        with self._mutex:
            for one in self._waiting:
                if one.wake.locked():
                    one.wake.release()

    def _seconds_to_wait(self, request: _Request) -> float:
        """Until others have come, or a step has ended; 0 where it is time to compute."""
        with self._mutex:
            if self._stepping.locked() or self._is_busy():
                return _LOOK_AGAIN_SECONDS
            if request.is_alone or self._expected <= {one.thread for one in self._waiting}:
                return 0
            return min(self._patient_until - time.monotonic(), _LOOK_AGAIN_SECONDS)

    def _lead(self, request: _Request, compute: Callable[[Sequence[_Request]], None]) -> None:
        try:
            # Who has it may be a prompt that computes this request between its chunks.
            with _held_soon(self._lock) as is_held:
                if is_held and not request.is_done:
                    self._compute(request, compute)
        finally:
            self.wake()

    def _compute(self, request: _Request, compute: Callable[[Sequence[_Request]], None]) -> None:
        with self._stepping:
            started = time.monotonic()
            try:
                compute(self._choose(request))
            finally:
                ended = time.monotonic()
                patience = min(max(_LEAST_SECONDS, _PATIENCE * (ended - started)), _MOST_SECONDS)
                self._patient_until = ended + patience

    def _choose(self, mine: _Request) -> list[_Request]:
        """Those that are computed now, in the order in which they came; they may be others than `mine`."""
        with self._mutex:
            # Ctrl-C may have left some behind.
            waiting = [one for one in self._waiting if one.is_open]
            self._waiting = [*waiting]
            self._expected = frozenset(one.thread for one in waiting if not one.is_alone)
        if mine.is_alone:
            return [mine]
        by_owner: dict[int, _Request] = {}
        for one in waiting:
            if one.kind == mine.kind and not one.is_alone:
                by_owner.setdefault(id(one.owner), one)
        return list(by_owner.values())[:MOST_SEQUENCES]
