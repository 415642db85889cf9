"""Writes what a person sees: the answer to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from ernie_cli.failures import spell_options
from ernie_cli.settings import terminal_is_plain
from ernie_cli.status import StatusLine
from ernie_local.escapes import printable, printable_line

_STYLES = {"plain": "", "dim": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[1;31m"}
_RESET = "\x1b[0m"


class Console:
    """The streams of one command run; keeps notes off the line on which an answer is still being written.

    Escape sequences in a text never reach a terminal as commands: names come from strangers, and a model
    repeats what it reads in an image. Only an answer that goes to a file is left as it is.
    """

    def __init__(
        self,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        *,
        quiet: bool = False,
        shows_result: bool | None = None,
    ) -> None:
        """`quiet` drops notes, and results if `shows_result` does not say otherwise."""
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        self._quiet = quiet
        self._shows_result = not quiet if shows_result is None else shows_result
        no_color = bool(os.environ.get("NO_COLOR")) or terminal_is_plain()
        self._colored = self._stderr.isatty() and not no_color
        self.status = StatusLine(
            self._stderr, self._stderr.isatty() and not quiet and not terminal_is_plain()
        )
        self._open_line: TextIO | None = None

    def answer(self, text: str) -> None:
        """A piece of the answer on stdout, shown at once."""
        self._write(self._stdout, text)

    def show(self, lines: Iterable[str]) -> None:
        """Lines of a result on stdout, unless the object of --json is printed in their place."""
        if self._shows_result:
            for line in lines:
                self._write(self._stdout, printable_line(line) + "\n")

    def thought(self, text: str) -> None:
        """A piece of the reasoning on stderr, dimmed where the terminal can."""
        self._write(self._stderr, text, "dim")

    def note(self, line: str) -> None:
        """A line of information on stderr."""
        if not self._quiet:
            self._line(printable_line(line), "plain")

    def say(self, line: str) -> None:
        """A line on stderr that was asked for: shown also when quiet."""
        self._line(line, "plain")

    def warn(self, line: str) -> None:
        """A line on stderr that should not be missed."""
        self._line(f"warning: {line}", "warning")

    @contextmanager
    def telling_warnings(self) -> Iterator[None]:
        """Meanwhile, what the runtime warns of is told as by `warn`."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: self.warn(spell_options(str(message)))
            yield

    def error(self, text: str) -> None:
        """An error on stderr; `text` may have several lines, the first one stands out."""
        first, _, rest = text.partition("\n")
        self._line(f"error: {first}", "error")
        if rest:
            self._line(rest, "plain")

    def end_line(self) -> None:
        """Close the line that pieces left open, so that what follows starts on its own."""
        if self._open_line is not None:
            with self.status.above(leaves_line_open=False):
                self._open_line.write("\n")
                self._open_line.flush()
            self._open_line = None

    @contextmanager
    def working(self, part: str) -> Iterator[None]:
        """Meanwhile the last line of a terminal says this, or what `status.show` is told."""
        self.status.show(part)
        try:
            yield
        finally:
            self.status.hide()

    def step(self, part: str) -> None:
        """What is done now: on the status line, or as a note where there is none."""
        if self.status.is_shown:
            self.status.show(part)
        else:
            self.note(part)

    def _line(self, line: str, style: str) -> None:
        self.end_line()
        self._write(self._stderr, printable(line) + "\n", style)

    def _write(self, stream: TextIO, text: str, style: str = "plain") -> None:
        if not text:
            return
        if self._open_line is not None and self._open_line is not stream:
            self.end_line()
        shown = printable(text) if stream.isatty() else text
        if self._colored and stream is self._stderr and _STYLES[style]:
            shown = f"{_STYLES[style]}{shown}{_RESET}"
        with self.status.above(leaves_line_open=not text.endswith("\n")):
            stream.write(shown)
            stream.flush()
        self._open_line = None if text.endswith("\n") else stream
