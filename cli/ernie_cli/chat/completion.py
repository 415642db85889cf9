"""Completes what is typed at the prompt of a chat: commands, their words, and paths, also inside quotes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from ernie_cli.options import complete_path

_FILE, _SEVERAL = "FILE", "..."


def make_completer(arguments: Mapping[str, str]) -> Completer:
    """Completes the names of `arguments` at the start of a line, and behind them what they take.

    That is FILE (one path), FILE... (several; of what may stand behind a path nothing is completed), or words
    such as on|off.
    """

    class SlashCompleter(Completer):
        """Told apart by the blank after the command."""

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            del complete_event
            command, blank, argument = document.text_before_cursor.partition(" ")
            if not blank:
                found = [name for name in arguments if command.startswith("/") and name.startswith(command)]
                return [Completion(name, -len(command)) for name in found]
            takes = arguments.get(command, "")
            argument = argument.lstrip()
            if takes.startswith(_FILE):
                return _complete_paths(argument, has_several=takes.endswith(_SEVERAL))
            words = re.findall(r"[a-z]+", takes)
            return [Completion(word, -len(argument)) for word in words if word.startswith(argument)]

    return SlashCompleter()


def _complete_paths(argument: str, *, has_several: bool) -> Iterator[Completion]:
    """Paths for the whole argument, which may have blanks; of several paths also for the last one."""
    last = _last_word(argument) if has_several else argument
    for typed in dict.fromkeys((argument, last)):
        quote, path = (typed[0], typed[1:]) if typed[:1] in ("'", '"') else ("", typed)
        if quote and quote in path:
            continue  # it has ended
        for found in complete_path(path):
            yield Completion(_quoted(found, quote, has_several), -len(typed), display=found)


def _last_word(argument: str) -> str:
    """The last of several words as it was typed, with the quote that it begins with."""
    lexer = re.compile(r"""\s*("[^"]*"|'[^']*'|[^\s'"]+)\s+""")
    position = 0
    while match := lexer.match(argument, position):
        position = match.end()
    return argument[position:].lstrip()


def _quoted(path: str, quote: str, has_several: bool) -> str:
    """As it has to be typed; a folder stays open, so that its files can be typed behind it."""
    if not quote and has_several and shlex.quote(path) != path and not path.startswith("~"):
        quote = '"' if "'" in path else "'"
    return f"{quote}{path}{'' if path.endswith('/') else quote}"
