"""Says what was probably meant where a word is no command, or no command comes before the options."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from ernie_local.errors import UsageError

# What similar programs call it.
_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("run", "ask", "start", "generate", "complete", "prompt", "serve"), "chat"),
    **dict.fromkeys(("pull", "get", "download", "fetch", "install"), "chat hf:org/name"),
    **dict.fromkeys(("show", "info", "describe"), "inspect"),
    **dict.fromkeys(("list", "ls", "catalog", "cache"), "models"),
    **dict.fromkeys(("remove", "rm", "delete"), "models remove NAME"),
    **dict.fromkeys(("convert", "create", "compress", "export"), "quantize"),
    **dict.fromkeys(("check", "validate", "test"), "verify"),
    **dict.fromkeys(("measure", "profile", "speed"), "bench"),
    **dict.fromkeys(("memory", "ram", "fit", "plan", "estimate"), "vram"),
    **dict.fromkeys(("compare", "evaluate", "perplexity"), "eval"),
    **dict.fromkeys(("status", "ps", "system", "diagnose"), "doctor"),
    "version": "--version",
}


_MOST_CHARACTERS = 200  # of a command line as advice


def unknown_command(word: str, rest: Sequence[str], commands: Collection[str]) -> UsageError:
    """The error for `word`, followed by `rest`: it names the nearest of `commands`."""
    lowered = word.lower()
    nearest = get_close_matches(lowered, [*commands, *_ELSEWHERE], n=1)
    if lowered == "help":
        meant = f"{next((name for name in rest if name in commands), '')} --help".strip()
    elif word == "nano" or word.startswith("hf:") or _is(word, Path.is_dir):
        meant = _line("chat", word, *rest)
    elif word == "-":
        meant = _line("chat", "-p", "-", *rest)
    elif _is(word, Path.is_file):
        meant = _line("chat", "--image", word, *rest)
    elif nearest:
        meant = _ELSEWHERE.get(nearest[0], nearest[0])
        meant = _line(meant, *rest) if meant in commands else meant
    else:
        meant = _line("chat", "-p", word, *rest) if len(word.split()) > 1 else "--help"
    more = "" if meant.endswith("--help") else ", or ernie-local --help"
    return UsageError(
        f"there is no command {word[:40]!r}",
        f"the commands are {', '.join(commands)}",
        f"ernie-local {meant}{more}",
    )


def missing_command(words: Sequence[str], takes_value: Mapping[str, Mapping[str, bool]]) -> UsageError:
    """The error for options that no command comes before.

    words: all that was written. takes_value: of each command, whether an option of this name takes a value.
    """
    known = {name: taking for options in takes_value.values() for name, taking in options.items()}
    options: list[str] = []
    command, is_value = None, False
    for position, word in enumerate(takewhile(lambda word: word != "--", words)):
        if is_value:
            is_value = False
        elif len(word) > 1 and word.startswith("-"):
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            options.append(name)
            is_value = known.get(name, False) and name == word
        elif word in takes_value:
            command, words = word, [*words[:position], *words[position + 1 :]]
            break
    for name, names in takes_value.items():
        if command is None and names.keys() >= set(options):
            command = name
    if command is not None:
        meant = _line(command, *words)
    else:
        [meant] = get_close_matches(options[0], ("--version", "--help"), n=1) or ["--help"]
    first = options[0][:40]
    return UsageError(
        f"the option {first} comes before any command",
        f"options follow one of {', '.join(takes_value)}",
        f"ernie-local {meant}",
    )


def _line(*words: str) -> str:
    line = shlex.join(words)
    return line if len(line) <= _MOST_CHARACTERS else f"{words[0]} ..."


def _is(word: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return bool(word) and kind(Path(word))
    except (OSError, ValueError):
        return False
