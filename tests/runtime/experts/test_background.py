"""Pages that are read in the background: in which order, who waits, and who gets an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.experts import background
from ernie_local.experts.background import BackgroundReader
from ernie_local.experts.keys import ExpertKey

KEYS = [
    ExpertKey(layer, bank, expert) for layer in (1, 2) for bank in ("text", "vision") for expert in (0, 1)
]
DAMAGED = ExpertKey(1, "vision", 1)


class Disk:
    """Reads a page when the test lets it, and notes in which order pages are read and checked.

    The model computes while `is_busy`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_readers: int = 1) -> None:
        monkeypatch.setattr(background, "_FETCHERS", num_readers)
        self.order: list[ExpertKey] = []
        self.checked: list[ExpertKey] = []
        self.is_busy = False
        self.num_ended = 0
        self._pages = threading.Semaphore(0)
        self.reader = BackgroundReader(
            dict.fromkeys(KEYS, 100), self._fetch, self._check, self._end, lambda: self.is_busy
        )

    def let(self, num_pages: int) -> None:
        self._pages.release(num_pages)

    def let_all(self) -> None:
        """Returns when all pages have been read, and checked unless the model computes."""
        self.let(len(KEYS))
        for thread in self.reader._threads:
            if not (self.is_busy and thread in self.checkers):
                thread.join(30)

    @property
    def checkers(self) -> list[threading.Thread]:
        return self.reader._threads[background._FETCHERS :]

    def _end(self) -> None:
        self.num_ended += 1

    def _fetch(self, key: ExpertKey) -> None:
        assert self._pages.acquire(timeout=30)
        self.order.append(key)

    def _check(self, key: ExpertKey) -> None:
        self.checked.append(key)
        if key == DAMAGED:
            raise ModelUnusable(f"{key} is damaged", "a test", "none")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    one = Disk(monkeypatch)
    yield one
    one.let(len(KEYS))
    one.reader.close()


def wait_beside(disk: Disk, key: ExpertKey) -> threading.Thread:
    """A thread that waits for this page; returns once it has said so."""
    waiting = threading.Thread(target=disk.reader.wait, args=([key],))
    waiting.start()
    while next(iter(disk.reader._later)) != key:
        pass
    return waiting


def test_pages_are_read_in_order_and_the_end_is_told_once(disk: Disk) -> None:
    disk.let_all()
    with pytest.raises(ModelUnusable):
        disk.reader.wait_for_all()
    assert disk.order == KEYS
    assert disk.num_ended == 1


def test_a_page_that_is_waited_for_is_read_next(disk: Disk) -> None:
    waiting = wait_beside(disk, KEYS[-1])
    disk.let(2)
    waiting.join(30)
    assert disk.order == [KEYS[0], KEYS[-1]]  # the first one was on its way
    disk.reader.wait([KEYS[0]])
    assert disk.reader.read_bytes == 200


def test_preferred_banks_come_first(disk: Disk) -> None:
    disk.reader.prefer(lambda key: key.bank == "vision")
    disk.let_all()
    ordered = [key for key in KEYS[1:] if key.bank == "vision"]
    assert disk.order[1:] == [*ordered, *(key for key in KEYS[1:] if key.bank == "text")]


def test_an_error_reaches_those_who_wait_for_its_page_alone(disk: Disk) -> None:
    disk.let(len(KEYS))
    disk.reader.wait(key for key in KEYS if key != DAMAGED)
    for _ in range(2):
        with pytest.raises(ModelUnusable, match="is damaged"):
            disk.reader.wait([DAMAGED])
    assert not disk.reader.is_complete
    assert disk.reader.read_bytes == disk.reader.total_bytes == 100 * len(KEYS)


def test_who_waits_when_reading_is_stopped_is_told(disk: Disk) -> None:
    errors: list[UsageError] = []

    def wait() -> None:
        with pytest.raises(UsageError, match="8 of 8 parts of the weights were not read") as caught:
            disk.reader.wait([KEYS[-1]])
        errors.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    disk.reader.stop()
    waiting.join(30)
    assert len(errors) == 1
    disk.let(1)
    disk.reader.close()
    assert disk.order == KEYS[:1]  # the page that was on its way
    with pytest.raises(UsageError):
        disk.reader.wait_for_all()


def test_several_threads_read_each_page_once(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, num_readers=3)
    disk.let_all()
    assert sorted(disk.order) == sorted(KEYS)
    assert disk.num_ended == 1


def test_who_waits_checks_what_has_been_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkers may starve beside other programs."""
    monkeypatch.setattr(background, "_CHECKERS", 0)
    disk = Disk(monkeypatch)
    disk.let_all()
    disk.reader.wait(KEYS[:2])
    assert disk.checked == KEYS[:2]
    with pytest.raises(ModelUnusable, match="is damaged"):
        disk.reader.wait_for_all()


def test_an_interrupted_check_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_CHECKERS", 0)
    disk, check = Disk(monkeypatch), Disk._check
    disk.let_all()

    def interrupt(_key: ExpertKey) -> None:
        raise KeyboardInterrupt

    disk.reader._check = interrupt
    with pytest.raises(KeyboardInterrupt):
        disk.reader.wait(KEYS[:1])
    disk.reader._check = partial(check, disk)
    disk.reader.wait(KEYS[:1])
    assert disk.checked == KEYS[:1]


def test_only_pages_that_are_waited_for_are_checked_while_the_model_computes(disk: Disk) -> None:
    disk.is_busy = True
    disk.let_all()
    disk.reader.wait(KEYS[2:6:2])
    assert disk.reader.read_bytes == disk.reader.total_bytes
    assert sorted(disk.checked) == KEYS[2:6:2]
    assert not disk.reader.is_complete
    disk.is_busy = False
    for thread in disk.checkers:
        thread.join(30)
    assert sorted(disk.checked) == sorted(KEYS)
    with pytest.raises(ModelUnusable, match="is damaged"):
        disk.reader.wait([DAMAGED])


def test_other_pages_are_checked_while_the_model_waits_for_the_disk(disk: Disk) -> None:
    disk.is_busy = True
    waiting = wait_beside(disk, KEYS[-1])
    disk.let(1)
    give_up = time.monotonic() + 30
    while disk.checked != KEYS[:1] and time.monotonic() < give_up:
        time.sleep(0.01)
    assert disk.checked == KEYS[:1]  # which was on its way already
    disk.let(1)
    waiting.join(30)
    assert disk.checked == [KEYS[0], KEYS[-1]]


def test_checkers_help_who_waits(disk: Disk) -> None:
    disk.is_busy = True
    together, check = threading.Barrier(2), disk._check

    def check_beside_another(key: ExpertKey) -> None:
        together.wait(30)
        check(key)

    disk.reader._check = check_beside_another
    disk.let_all()
    disk.reader.wait(KEYS[-2:])
    assert sorted(disk.checked) == KEYS[-2:]
