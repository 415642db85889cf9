"""Every error a user of ernie-local may see, and the exit code that each one stands for.

Owns the three-line shape of a message: what failed (with both numbers), why, and what to try.
Knows nothing of models, files, or of how a message is printed; the commands print `str(error)`
and leave with `error.exit_code`.
"""

from __future__ import annotations


class ErnieLocalError(Exception):
    """Base of all errors meant for a user; anything else that escapes is a defect of ours.

    `what` names the thing and both numbers, `why` gives the reason, `hint` the next step to try.
    Each is one line: line breaks inside are folded to spaces, so that `str()` has three lines.
    """

    exit_code: int = 1

    def __init__(self, what: str, why: str, hint: str) -> None:
        self.what = _one_line(what)
        self.why = _one_line(why)
        self.hint = _one_line(hint)
        # The three parts, and not the text, are the arguments: pickling and copying rebuild from them.
        super().__init__(self.what, self.why, self.hint)

    def __str__(self) -> str:
        return f"{self.what}\n{self.why}\ntry: {self.hint}"


class UsageError(ErnieLocalError):
    """An option or argument that cannot mean anything (exit code 2)."""

    exit_code = 2


class DoesNotFit(ErnieLocalError):
    """Too large for the memory or context given, or this machine lacks what is asked for (3)."""

    exit_code = 3


class ModelUnusable(ErnieLocalError):
    """The model is missing, incomplete, corrupt, or of a kind this code does not run (4)."""

    exit_code = 4


class InputUnreadable(ErnieLocalError):
    """An image, document or text of the user that cannot be read (5)."""

    exit_code = 5


class OutOfMemory(ErnieLocalError):
    """Memory ran out although the plan said that it fits (6)."""

    exit_code = 6


class NoAnswer(ErnieLocalError):
    """The run stopped before any answer came (7)."""

    exit_code = 7


class Stopped(ErnieLocalError):
    """Long work was stopped safely and can be gone on with (75)."""

    exit_code = 75


class Interrupted(ErnieLocalError):
    """The user stopped a piece of work that leaves nothing to go on from (130)."""

    exit_code = 130


def _one_line(text: str) -> str:
    return " ".join(text.split())
