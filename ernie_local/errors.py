"""Defines every error that a user may see, with the exit code that it stands for.

A message has three lines: what failed (with both numbers), why, and what to try. What it says of an argument
is written with `parameter`, so that Python users read `ram="6GiB"` and the command line `--ram 6GiB`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# name, value as text, value as Python writes it; control characters that no message has of its own.
_PARAMETER = re.compile("\x02([^\x04]*)\x04([^\x04]*)\x04([^\x03]*)\x03")
ParameterSpelling = Callable[[str, str], str]


def parameter(name: str, value: object = None) -> str:
    """A mark for an argument of the API in a message: `ram`, or `ram="6GiB"` where a value is given."""
    if value is None:
        return f"\x02{name}\x04\x04\x03"
    written = repr(value) if not isinstance(value, str) else f'"{value}"'
    return f"\x02{name}\x04{value}\x04{written}\x03"


def spell_parameters(text: str, spelling: ParameterSpelling | None = None) -> str:
    """`text` with marks as Python arguments, or as by `spelling`, which gets name and value ("" for none)."""
    if spelling is not None:
        return _PARAMETER.sub(lambda mark: spelling(mark[1], mark[2]), text)
    return _PARAMETER.sub(lambda mark: f"{mark[1]}={mark[3]}" if mark[3] else mark[1], text)


class ErnieLocalError(Exception):
    """Base of all errors meant for a user; anything else that escapes is a defect of this project.

    `what` names the thing and both numbers, `why` gives the reason, `hint` the next step to try.
    Each is one line: line breaks inside are folded to spaces, so that `str()` has three lines.
    """

    exit_code: int = 1

    def __init__(self, what: str, why: str, hint: str) -> None:
        # The three parts, and not the text, are the arguments: pickling and copying rebuild from them.
        super().__init__(*(_one_line(part) for part in (what, why, hint)))
        self.what, self.why, self.hint = self.spelled()

    def __str__(self) -> str:
        return f"{self.what}\n{self.why}\ntry: {self.hint}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.what!r}, {self.why!r}, {self.hint!r})"

    def spelled(self, spelling: ParameterSpelling | None = None) -> tuple[str, str, str]:
        """What, why and hint, with arguments named as by `spell_parameters`."""
        what, why, hint = (spell_parameters(part, spelling) for part in self.args)
        return what, why, hint


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
