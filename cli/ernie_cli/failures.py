"""Turns any exception into what a user is told of it: a code name, an exit code, and three lines.

Errors of the library name arguments (`ram="6GiB"`); here they become options (`--ram 6GiB`).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import typer

from ernie_local.errors import (
    DoesNotFit,
    ErnieLocalError,
    Interrupted,
    OutOfMemory,
    UsageError,
    spell_parameters,
)
from ernie_local.machine.libraries import load_failure
from ernie_local.planner.free_memory import address_limit
from ernie_local.sizes import format_bytes

# Options that are not called as the library's argument.
_OPTIONS = {
    "context_size": "ctx-size",
    "images": "image",
    "most_memory": "max-ram",
    "temperature": "temp",
    "thinking": "think",
    "thinking_budget": "think-budget",
    "variant": "template",
    "videos": "video",
}
CODE_NAMES = {
    1: "failed",
    2: "usage",
    3: "does_not_fit",
    4: "model_unusable",
    5: "input_unreadable",
    6: "out_of_memory",
    7: "no_answer",
    75: "stopped",
    130: "interrupted",
}
# torch reports exhausted memory as RuntimeError; only its words tell it from a defect.
_OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory")
_NO_THREAD = "can't start new thread"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a command ended when it did not end well."""

    code: str
    exit_code: int
    what: str
    why: str
    hint: str

    def text(self) -> str:
        """The message for people: three lines, or one for a defect of ours."""
        if self.code == "internal":
            return f"{self.what}; {self.hint}"
        return f"{self.what}\n{self.why}\ntry: {self.hint}"


def failure_of(error: BaseException) -> Failure:
    """The failure that `error` stands for; an unexpected exception is an internal error (1)."""
    known = _as_user_error(error)
    if known is None:
        first_line = (str(error).splitlines() or [""])[0]
        return Failure(
            code="internal",
            exit_code=1,
            what=f"internal error: {type(error).__name__}: {first_line}".rstrip(": "),
            why="this is a defect of ernie-local, not of the input",
            hint="run again with --debug for the traceback",
        )
    code = CODE_NAMES.get(known.exit_code, "failed")
    return Failure(code, known.exit_code, *known.spelled(as_option))


def spell_options(text: str) -> str:
    """A text of the library with its arguments named as options of the command line."""
    return spell_parameters(text, as_option)


def as_option(name: str, value: str) -> str:
    """How an argument of the library is written on the command line, with its value if it is not ""."""
    option = "-p" if name == "text" else "--" + _OPTIONS.get(name, name).replace("_", "-")
    return f"{option} {shlex.quote(value)}" if value not in ("", "True") else option


def _as_user_error(error: BaseException) -> ErnieLocalError | None:
    if isinstance(error, ErnieLocalError):
        return error
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ernie-local"
        return UsageError(
            error.format_message(), f"the command line does not fit what {command} takes", f"{command} --help"
        )
    failed = load_failure(error)
    if failed is not None:
        return failed
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return DoesNotFit(
            f"a thread cannot be started: {error}",
            "processes are limited (ulimit -u, pids.max of a container), or addresses (ulimit -v)",
            "raise that limit, or end other programs",
        )
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", "Ctrl-C was pressed before the end", "run the command again")
    if isinstance(error, OSError):
        return ErnieLocalError(
            f"{error.filename or 'a file'}: {error.strerror or error}",
            "the operating system refused it",
            "check the path, its permissions, and the space on the disk",
        )
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY_WORDS)
    ):
        what = f"memory ran out: {(str(error).splitlines() or ['allocation failed'])[0]}"
        limit = address_limit()
        if limit is not None:
            why = f"the addresses that this process may use are limited to {format_bytes(limit)} (ulimit -v)"
            return OutOfMemory(what, why, "raise that limit, a smaller model, or a smaller --ctx-size")
        return OutOfMemory(
            what,
            "the model, its context and the images need more than this machine has free",
            "a smaller --ctx-size, --dtype bfloat16, fewer images, or a machine with more memory",
        )
    return None
