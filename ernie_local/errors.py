"""Defines every error that a user may see, with its exit code.

A message has three lines: what failed (with both numbers), why, and what to try. Arguments in it are written
with `parameter`, so that Python users read `ram="6GiB"` and users of the command line `--ram 6GiB`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from ernie_local.escapes import printable_line

# Name, value as text, value as Python writes it, between control characters that no message has.
_PARAMETER = re.compile("\x02([^\x04]*)\x04([^\x04]*)\x04([^\x03]*)\x03")
ParameterSpelling = Callable[[str, str], str]


def parameter(name: str, value: object = None) -> str:
    """A mark for an argument of the API in a message: `ram`, or `ram="6GiB"` where a value is given."""
    if value is None:
        return f"\x02{name}\x04\x04\x03"
    written = repr(value) if not isinstance(value, str) else f'"{value}"'
    return f"\x02{name}\x04{value}\x04{written}\x03"


def spell_parameters(text: str, spelling: ParameterSpelling | None = None) -> str:
    """Replace the marks in `text` by Python arguments, or by `spelling` of name and value ("" for none)."""
    if spelling is not None:
        return _PARAMETER.sub(lambda mark: spelling(mark[1], mark[2]), text)
    return _PARAMETER.sub(lambda mark: f"{mark[1]}={mark[3]}" if mark[3] else mark[1], text)


class ErnieLocalError(Exception):
    """Base of all errors meant for a user; any other exception is a defect of this project.

    `what` names the thing and both numbers, `why` gives the reason, `hint` the next step to try. Line breaks
    in them become spaces, so `str()` has three lines.
    """

    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls, exit_code: int) -> None:
        cls.exit_code = exit_code

    def __init__(self, what: str, why: str, hint: str) -> None:
        # Pickling and copying rebuild from the arguments, so these are the three parts.
        super().__init__(*(" ".join(part.split()) for part in (what, why, hint)))
        self.what, self.why, self.hint = self.spelled()

    def __str__(self) -> str:
        return f"{self.what}\n{self.why}\ntry: {self.hint}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.what!r}, {self.why!r}, {self.hint!r})"

    def spelled(self, spelling: ParameterSpelling | None = None) -> tuple[str, str, str]:
        """What, why and hint, with arguments named as by `spell_parameters`."""
        what, why, hint = (printable_line(spell_parameters(part, spelling)) for part in self.args)
        return what, why, hint


class UsageError(ErnieLocalError, exit_code=2):
    """An option or argument without a meaning."""


class DoesNotFit(ErnieLocalError, exit_code=3):
    """Too large for the given memory or context, or this machine lacks what was asked for."""


class ModelUnusable(ErnieLocalError, exit_code=4):
    """The model is missing, incomplete, corrupt, or of a kind this code does not run."""


class InputUnreadable(ErnieLocalError, exit_code=5):
    """An image, document or text that cannot be read."""


class OutOfMemory(ErnieLocalError, exit_code=6):
    """Memory ran out although it should have fitted."""


class NoAnswer(ErnieLocalError, exit_code=7):
    """The run ended without an answer."""


class Stopped(ErnieLocalError, exit_code=75):
    """Long work was stopped and can be resumed."""


class Interrupted(ErnieLocalError, exit_code=130):
    """The user stopped work that cannot be resumed."""
