"""Says what was probably meant by a word that is no command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from pathlib import Path

from ernie_local.errors import UsageError

# What similar programs call it.
_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("run", "ask", "start", "generate", "complete", "prompt", "serve"), "chat"),
    **dict.fromkeys(("pull", "get", "download", "fetch", "install"), "chat hf:org/name"),
    **dict.fromkeys(("show", "info", "list", "ls", "describe"), "inspect"),
    **dict.fromkeys(("convert", "create", "compress", "export"), "quantize"),
    **dict.fromkeys(("check", "validate", "test"), "verify"),
    **dict.fromkeys(("measure", "profile", "speed"), "bench"),
    **dict.fromkeys(("memory", "ram", "fit", "plan", "estimate"), "vram"),
    **dict.fromkeys(("compare", "evaluate", "perplexity"), "eval"),
    **dict.fromkeys(("status", "ps", "system", "diagnose"), "doctor"),
    "version": "--version",
}


def unknown_command(word: str, rest: Collection[str], commands: Collection[str]) -> UsageError:
    """The error for `word`, followed by `rest`: it names the nearest of `commands`."""
    lowered = word.lower()
    nearest = get_close_matches(lowered, [*commands, *_ELSEWHERE], n=1)
    if lowered == "help":
        meant = f"{next((name for name in rest if name in commands), '')} --help".strip()
    elif word == "nano" or word.startswith("hf:") or _is(word, Path.is_dir):
        meant = f"chat {shlex.quote(word)}"
    elif _is(word, Path.is_file):
        meant = f"chat --image {shlex.quote(word)}"
    elif nearest:
        meant = _ELSEWHERE.get(nearest[0], nearest[0])
    else:
        meant = "chat -p TEXT" if len(word.split()) > 1 else "--help"
    more = "" if meant.endswith("--help") else ", or ernie-local --help"
    return UsageError(
        f"there is no command {word[:40]!r}",
        f"the commands are {', '.join(commands)}",
        f"ernie-local {meant}{more}",
    )


def _is(word: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return bool(word) and kind(Path(word))
    except (OSError, ValueError):
        return False
