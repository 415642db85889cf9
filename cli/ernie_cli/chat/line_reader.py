"""Reads what a person types: with editing, history and completion at a terminal, else plain lines."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.console import Console
from ernie_cli.settings import history_path, terminal_is_plain

if TYPE_CHECKING:
    from prompt_toolkit.history import History

PROMPT = "> "
MORE_PROMPT = ". "
_BLOCK = '"""'

# Gets a prompt, gives the next line without its newline; EOFError at the end, KeyboardInterrupt on Ctrl-C.
LineReader = Callable[[str], str]


def make_reader(arguments: Mapping[str, str], console: Console) -> LineReader:
    """The best reader that stdin and stderr allow. arguments: what the commands take, by their names.

    At a terminal: editing, the history of all chats, Tab for commands, words and paths.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or terminal_is_plain():
        return _read_plainly
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    from ernie_cli.chat.completion import make_completer

    session: PromptSession[str] = PromptSession(
        completer=make_completer(arguments),
        complete_while_typing=False,
        history=open_history(history_path(), console),
        # stdout is the answer's: the prompt goes to stderr, so that `ernie-local chat > answers.txt` works.
        output=create_output(stdout=sys.stderr),
    )
    return session.prompt


def open_history(path: Path, console: Console) -> History | None:
    """Lines of earlier chats, in a file for its owner alone; None, with a warning, where it cannot be."""
    from prompt_toolkit.history import FileHistory

    class LastingHistory(FileHistory):
        """A line that cannot be written, as on a full disk, is remembered for this chat alone."""

        def store_string(self, string: str) -> None:
            with suppress(OSError, UnicodeError):
                super().store_string(string)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if not path.is_file():
            raise OSError(errno.EINVAL, "it is not a file")
    except OSError as error:
        console.warn(f"{path}: {error.strerror}; what is typed is remembered for this chat alone")
        return None
    return LastingHistory(path)


def _read_plainly(prompt: str) -> str:
    """Shows the prompt on stderr only if a person sits at the other end."""
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


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
