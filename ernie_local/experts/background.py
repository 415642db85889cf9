"""Reads pages of experts in the background, those first that somebody waits for.

Each page is read once, and stays.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

from ernie_local.config import Bank
from ernie_local.errors import UsageError
from ernie_local.experts.keys import ExpertKey

_READERS = 4  # as many reads in flight keep a solid-state disk busy


class BackgroundReader:
    """Threads that read pages, each with its number of bytes, in the order given."""

    def __init__(
        self,
        page_bytes: Mapping[ExpertKey, int],
        read: Callable[[ExpertKey], None],
        when_ended: Callable[[], None],
    ) -> None:
        """read: is called for each key, on several threads, and returns when the page can be used.

        when_ended: is called once, when the last thread has ended.
        """
        self.total_bytes = sum(page_bytes.values())
        self.read_bytes = 0  # of pages that turned out damaged, too
        self._page_bytes = page_bytes
        self._read = read
        self._later = OrderedDict.fromkeys(page_bytes)  # which no thread has taken yet
        self._unread = set(page_bytes)
        self._errors: dict[ExpertKey, BaseException] = {}
        self._is_stopped = False
        self._when_ended, self._num_running = when_ended, _READERS
        self._changed = threading.Condition()
        # Not daemons: those are cut off when Python ends, and torch's code does not bear that.
        self._threads = [
            threading.Thread(target=self._run, name=f"ernie-read-{number}") for number in range(_READERS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_complete(self) -> bool:
        """Whether every page has been read."""
        return not self._unread

    def prefer(self, banks: Collection[Bank]) -> None:
        """Read the pages of these banks before all others."""
        with self._changed:
            ordered = sorted(self._later, key=lambda key: key.bank not in banks)  # stable
            self._later = OrderedDict.fromkeys(ordered)

    def wait(self, keys: Iterable[ExpertKey]) -> None:
        """Return when all of these pages can be used. Raises what reading one of them has raised.

        UsageError after `stop`.
        """
        with self._changed:
            missing = [key for key in keys if key in self._unread]
            for key in reversed(missing):
                if key in self._later:
                    self._later.move_to_end(key, last=False)
            for key in missing:
                self._wait(key)

    def wait_for_all(self) -> None:
        """As `wait`, of every page, in any order."""
        with self._changed:
            for key in self._page_bytes:
                self._wait(key)

    def _wait(self, key: ExpertKey) -> None:
        while key in self._unread:
            if key in self._errors:
                raise self._errors[key]
            if self._is_stopped:
                raise UsageError(
                    f"{len(self._unread)} of {len(self._page_bytes)} pages of experts were not read",
                    "the model was closed before",
                    "load it again",
                )
            self._changed.wait()

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

    def _run(self) -> None:
        while (key := self._take()) is not None:
            error: BaseException | None = None
            try:
                self._read(key)
            except BaseException as raised:  # noqa: BLE001 - whoever waits for the page gets it
                error = raised
            with self._changed:
                self.read_bytes += self._page_bytes[key]
                if error is None:
                    self._unread.remove(key)
                else:
                    self._errors[key] = error
                self._changed.notify_all()
        with self._changed:
            self._num_running -= 1
            is_last = not self._num_running
        if is_last:
            self._when_ended()

    def _take(self) -> ExpertKey | None:
        # When Python ends it waits for this thread, which is not to read all that is left before.
        if self._is_stopped or not threading.main_thread().is_alive():
            return None
        with self._changed:
            return self._later.popitem(last=False)[0] if self._later else None
