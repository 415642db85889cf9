"""Reads what a person types: with editing, history and completion at a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from ernie_cli.settings import terminal_is_plain

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

PROMPT = "> "
MORE_PROMPT = ". "
_BLOCK = '"""'

# Gets a prompt, gives the next line without its newline; EOFError at the end, KeyboardInterrupt on Ctrl-C.
LineReader = Callable[[str], str]


def make_reader(commands: Collection[str], path_commands: Collection[str]) -> LineReader:
    """The best reader that stdin and stderr allow.

    At a terminal: editing, the history of this chat, Tab for commands and for paths.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or terminal_is_plain():
        return _read_plainly
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        completer=make_completer(commands, path_commands),
        complete_while_typing=False,
        # stdout is the answer's: the prompt goes to stderr, so that `ernie-local chat > answers.txt` works.
        output=create_output(stdout=sys.stderr),
    )
    return session.prompt


def _read_plainly(prompt: str) -> str:
    """Shows the prompt on stderr only if a person sits at the other end."""
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def make_completer(commands: Collection[str], path_commands: Collection[str]) -> Completer:
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


def read_message(read: LineReader) -> str:
    '''One message: a line, or all lines from one that starts with """ to one that ends with it.'''
    line = read(PROMPT)
    if not line.lstrip().startswith(_BLOCK):
        return line
    rest = line.lstrip().removeprefix(_BLOCK)
    lines = []
    while not rest.rstrip().endswith(_BLOCK):
        lines.append(rest)
        rest = read(MORE_PROMPT)
    lines.append(rest.rstrip().removesuffix(_BLOCK))
    return "\n".join(lines).strip("\n")
