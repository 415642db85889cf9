"""The pieces of one answer as an iterator that tells a second thread in it what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ernie_local.errors import UsageError
from ernie_local.text.reasoning import Piece

_Result = TypeVar("_Result")


class Pieces(Generator[Piece, None, None]):
    """A generator of pieces; UsageError for who uses it while another thread waits for a piece of it."""

    def __init__(self, running: Generator[Piece, None, None]) -> None:
        self._running = running

    def send(self, value: None) -> Piece:
        """The next piece; StopIteration after the last one."""
        return _in_turn(self._running.send, value)

    def throw(self, *error: Any) -> Piece:
        """Raise this error where the answer has come to."""
        return _in_turn(self._running.throw, *error)

    def close(self) -> None:
        """End the answer as an interrupted one, unless it was read to its end."""
        _in_turn(self._running.close)


def _in_turn(use: Callable[..., _Result], *arguments: object) -> _Result:
    try:
        return use(*arguments)
    except ValueError as error:
        if not is_in_use(error):
            raise
        raise UsageError(
            "a piece of this answer is still being computed",
            "the pieces of an answer are read by one thread at a time",
            "read them in one thread and hand them on, or make a chat for each: they may share the model",
        ) from error


def is_in_use(error: ValueError) -> bool:
    """Whether this is Python's error for a generator that is running, in another thread or further up."""
    return str(error) == "generator already executing"


def ended_elsewhere() -> UsageError:
    """The error for who reads on after another thread has used the chat."""
    return UsageError(
        "another thread has used the chat before this answer was read to its end",
        "a chat has one answer at a time, and the next use ends the one before",
        "make a chat for each thread: they may share the model",
    )


def still_written() -> UsageError:
    """The error for who uses a chat while another thread waits for a piece of its answer."""
    return UsageError(
        "an answer is still being written",
        "a chat has one answer at a time",
        "call stop() first, or make a chat for each thread: they may share the model",
    )
