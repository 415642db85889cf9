"""Waits for files in a folder that fills, and gives each once it is written to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ernie_local.extraction.documents import DocumentFile, FoundFiles
from ernie_local.progress import StopQuestion

POLL_SECONDS = 2.0
_STEP_SECONDS = 0.2  # after which a stop is noticed


def watched_files(
    find: Callable[[], FoundFiles], should_stop: StopQuestion, poll_seconds: float = POLL_SECONDS
) -> Iterator[DocumentFile]:
    """The files that `find` gives now and later, without end; `should_stop` ends it.

    A file counts as written when size and time of change are the same in two looks, `poll_seconds` apart.
    """
    given: set[DocumentFile] = set()
    before: dict[DocumentFile, tuple[int, int]] = {}
    while not should_stop():
        states = {file: state for file in find().files if file not in given if (state := _state(file))}
        for file, state in states.items():
            if before.get(file) == state:
                given.add(file)
                yield file
        before = states
        _wait(poll_seconds, should_stop)


def _state(file: DocumentFile) -> tuple[int, int] | None:
    """Its size and the time of its last change; None where it is gone by now."""
    try:
        status = file.path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _wait(seconds: float, should_stop: StopQuestion) -> None:
    end = time.monotonic() + seconds
    while not should_stop() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _STEP_SECONDS))
