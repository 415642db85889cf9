"""Reads pages of weights in the background, those first that somebody waits for.

Each page is fetched once, checked once, and stays. Fetching waits for the disk, checking takes the processor.
While the model computes, only pages that it waits for are checked, and others only as long as it waits for
the disk; the rest are checked when it does not compute.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from ernie_local.errors import UsageError

_FETCHERS = 4  # as many reads in flight keep a solid-state disk busy
_CHECKERS = 2
_NICE = 15  # of checkers, on Linux: other programs come first
_LOOK_SECONDS = 0.1  # how often checkers look for what nobody tells them

Key = TypeVar("Key", bound=Hashable)


class BackgroundReader(Generic[Key]):
    """Threads that read pages, each with its number of bytes, in the order given."""

    def __init__(
        self,
        page_bytes: Mapping[Key, int],
        fetch: Callable[[Key], None],
        check: Callable[[Key], None],
        when_ended: Callable[[], None],
        is_busy: Callable[[], bool],
    ) -> None:
        """fetch, check: are called for each key, one after the other, on several threads.

        When `check` returns, the page can be used. when_ended: is called once, when all threads have ended.
        is_busy: whether the model computes; nobody tells when that changes.
        """
        self.total_bytes = sum(page_bytes.values())
        self.read_bytes = 0  # in memory, whether checked or not
        self._page_bytes = page_bytes
        self._fetch, self._check, self._is_busy = fetch, check, is_busy
        self._later = OrderedDict.fromkeys(page_bytes)  # which no thread has taken yet
        self._fetched: OrderedDict[Key, None] = OrderedDict()  # but not yet checked
        self._unread, self._unchecked = set(page_bytes), set(page_bytes)
        self._wanted: set[Key] = set()  # unchecked, and somebody waits for it
        self._errors: dict[Key, BaseException] = {}
        self._is_stopped = False
        self._when_ended, self._num_running = when_ended, _FETCHERS + _CHECKERS
        self._num_fetching = _FETCHERS
        self._changed = threading.Condition()
        # Not daemons: those are cut off when Python ends, and torch's code does not bear that.
        self._threads = [
            threading.Thread(target=self._run, args=(step,), name=f"ernie-read-{number}")
            for number, step in enumerate([self._fetch_pages] * _FETCHERS + [self._check_pages] * _CHECKERS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_complete(self) -> bool:
        """Whether every page has been read and checked."""
        return not self._unchecked

    def prefer(self, is_preferred: Callable[[Key], bool]) -> None:
        """Read these pages before all others, unless somebody waits for one."""
        with self._changed:
            for queue in (self._later, self._fetched):
                for key in [key for key in queue if not (is_preferred(key) or key in self._wanted)]:
                    queue.move_to_end(key)

    def wait(self, keys: Iterable[Key]) -> None:
        """Return when all of these pages can be used. Raises what reading one of them has raised.

        UsageError after `stop`.
        """
        with self._changed:
            missing = [key for key in keys if key in self._unchecked]
            self._wanted.update(missing)
            for key in reversed(missing):
                for queue in (self._later, self._fetched):
                    if key in queue:
                        queue.move_to_end(key, last=False)
            self._changed.notify_all()
        for key in missing:
            self._wait(key)

    def wait_for_all(self) -> None:
        """As `wait`, of every page."""
        self.wait(self._page_bytes)

    def _wait(self, key: Key) -> None:
        while self._is_missing(key):
            # Checkers give way to every other program. Who waits does not, and checks what has been fetched.
            try:
                if self._take(self._fetched, key) is not None:
                    self._check_page(key)
            except KeyboardInterrupt:
                with self._changed:
                    self._fetched[key] = None
                    self._changed.notify_all()
                raise

    def _is_missing(self, key: Key) -> bool:
        """Wait until the page can be used, False, or checked, True."""
        with self._changed:
            while key in self._unchecked:
                if key in self._errors:
                    raise self._errors[key]
                if key in self._fetched:
                    return True
                if self._is_stopped:
                    raise UsageError(
                        f"{len(self._unread)} of {len(self._page_bytes)} parts of the weights were not read",
                        "the model was closed before",
                        "load it again",
                    )
                self._changed.wait()
        return False

    def stop(self) -> None:
        """Have the threads end after the pages that they are reading. Never waits: see `close`."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads."""
        self.stop()
        for thread in self._threads:
            thread.join()

    def _run(self, read_pages: Callable[[], None]) -> None:
        read_pages()
        with self._changed:
            self._num_running -= 1
            is_last = not self._num_running
        if is_last:
            self._when_ended()

    def _fetch_pages(self) -> None:
        while (key := self._take(self._later)) is not None:
            is_there = self._succeeds(self._fetch, key)
            with self._changed:
                self._unread.remove(key)
                self.read_bytes += self._page_bytes[key]  # after an error nothing more will come of it
                if is_there:
                    self._fetched[key] = None
                    self._fetched.move_to_end(key, last=key not in self._wanted)
                self._changed.notify_all()
        with self._changed:
            self._num_fetching -= 1
            self._changed.notify_all()

    def _check_pages(self) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (key := self._take_to_check()) is not None:
            self._check_page(key)

    def _take_to_check(self) -> Key | None:
        """Take the first page that is to be checked now, when there is one; None if none will come."""
        with self._changed:
            while not self._has_ended() and (self._fetched or self._num_fetching):
                # Who waits for pages has them at the front.
                key = next(iter(self._fetched), None)
                if key is not None and (key in self._wanted or self._is_idle()):
                    return self._take(self._fetched, key)
                self._changed.wait(_LOOK_SECONDS)
        return None

    def _is_idle(self) -> bool:
        """Whether the model does not compute, or waits for the disk."""
        return not self._is_busy() or not self._wanted.isdisjoint(self._unread)

    def _check_page(self, key: Key) -> None:
        if self._succeeds(self._check, key):
            with self._changed:
                self._unchecked.discard(key)  # after an interrupt a page may be checked twice
                self._wanted.discard(key)
                self._changed.notify_all()

    def _succeeds(self, step: Callable[[Key], None], key: Key) -> bool:
        try:
            step(key)
        except KeyboardInterrupt:  # of who waits
            raise
        except BaseException as error:  # noqa: BLE001 - whoever waits for the page gets it
            with self._changed:
                self._errors[key] = error
                self._wanted.discard(key)
                self._changed.notify_all()
            return False
        return True

    def _take(self, queue: OrderedDict[Key, None], wanted: Key | None = None) -> Key | None:
        """Take the first page, or the wanted one, from a queue; None where it is not there."""
        with self._changed:
            if wanted is None and queue and not self._has_ended():
                wanted = next(iter(queue))
            if wanted is None or wanted not in queue:
                return None
            del queue[wanted]
            return wanted

    def _has_ended(self) -> bool:
        # When Python ends it waits for these threads, which are not to read all that is left before.
        return self._is_stopped or not threading.main_thread().is_alive()
