"""Reads what a person types: with editing, history and completion at a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from ernie_cli.settings import terminal_is_plain

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

PROMPT = "> "
MORE_PROMPT = ". "
_BLOCK = '"""'


class LineReader(Protocol):
    """Something that gives one line at a time."""

    def read(self, prompt: str) -> str:
        """The next line without its newline; EOFError at the end, KeyboardInterrupt on Ctrl-C."""


class PlainReader:
    """Lines of a stream; shows the prompt on stderr only if a person sits at the other end."""

    def __init__(self, stdin: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self._stdin = sys.stdin if stdin is None else stdin
        self._stderr = sys.stderr if stderr is None else stderr

    def read(self, prompt: str) -> str:
        """The next line of the stream."""
        if self._stdin.isatty():
            self._stderr.write(prompt)
            self._stderr.flush()
        line = self._stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class TerminalReader:
    """Lines typed at a terminal: editing, the history of this chat, Tab for commands and paths."""

    def __init__(self, commands: Sequence[str], path_commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        # stdout is the answer's: the prompt goes to stderr, so that `ernie-local chat > answers.txt` works.
        self._session: PromptSession[str] = PromptSession(
            completer=make_completer(commands, path_commands),
            complete_while_typing=False,
            output=create_output(stdout=sys.stderr),
        )

    def read(self, prompt: str) -> str:
        """The next line typed."""
        return self._session.prompt(prompt)


def make_completer(commands: Sequence[str], path_commands: Sequence[str]) -> Completer:
    """Completes `commands` at the start of a line, and paths after those of `path_commands`."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class SlashCompleter(Completer):
        """Told apart by the blank after the command."""

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            command, blank, argument = document.text_before_cursor.partition(" ")
            if blank and command in path_commands:
                # Only the argument: a path completer takes all that it is shown for a path.
                yield from paths.get_completions(Document(argument.lstrip()), complete_event)
            elif not blank and command.startswith("/"):
                for name in commands:
                    if name.startswith(command):
                        yield Completion(name, start_position=-len(command))

    return SlashCompleter()


def make_reader(commands: Sequence[str], path_commands: Sequence[str]) -> LineReader:
    """The best reader that stdin and stderr allow."""
    if sys.stdin.isatty() and sys.stderr.isatty() and not terminal_is_plain():
        return TerminalReader(commands, path_commands)
    return PlainReader()


def read_message(reader: LineReader) -> str:
    '''One message: a line, or all lines from one that starts with """ to one that ends with it.'''
    line = reader.read(PROMPT)
    if not line.lstrip().startswith(_BLOCK):
        return line
    rest = line.lstrip().removeprefix(_BLOCK)
    lines = []
    while not rest.rstrip().endswith(_BLOCK):
        lines.append(rest)
        rest = reader.read(MORE_PROMPT)
    lines.append(rest.rstrip().removesuffix(_BLOCK))
    return "\n".join(lines).strip("\n")
