"""What can be known to be wrong with the options of `chat` before any file of the model is opened.

Owns how options contradict each other, and where a chat may be written. Imports no torch.
"""

from __future__ import annotations

import math
from pathlib import Path

from ernie_cli.chat_options import ChatOptions
from ernie_cli.chat_request import reads_stdin
from ernie_local.errors import InputUnreadable, UsageError


def check_options(options: ChatOptions) -> None:
    """Raise for what can be known to be wrong before any file of the model is opened."""
    max_tokens, context_size = options.max_tokens_count(), options.context_tokens()
    options.think_budget_count()
    if max_tokens is not None and context_size is not None and max_tokens >= context_size:
        raise UsageError(
            f"--max-tokens {max_tokens} does not fit into --ctx-size {context_size}",
            "the context holds the question and the answer",
            f"--ctx-size {max_tokens + 1024} or more",
        )
    if options.think == "off" and options.think_budget is not None:
        raise UsageError(
            f"--think-budget {options.think_budget} was given together with --think off",
            "there are no thoughts to limit",
            "leave one of them out",
        )
    if options.small_below is not None:
        check_is_number("--small-below", options.small_below)
    if options.load is not None:
        _check_chat_file(options.load, options.system)
    if options.trace is not None:
        _check_output(options.trace, "a trace", b"PK", "chat.trace")
    if options.save is not None:
        check_save_path(options.save)
        if any(reads_stdin(image) for image in options.images):
            raise UsageError(
                "--save was given together with --image -",
                "a saved chat names its images by their files, and a pipe has none",
                "give the image as a file",
            )


def check_is_number(option: str, value: float) -> None:
    """Raise UsageError for nan, which no bound keeps out."""
    if math.isnan(value):
        raise UsageError(
            f"{option} nan is no number", "nan is neither less nor more than anything", f"{option} 0.1"
        )


def _check_chat_file(path: Path, system: str | None) -> None:
    if system is not None:
        raise UsageError(
            "--system and --load were given together",
            "a saved chat has its own system text",
            "leave one of them out",
        )
    if not path.is_file():
        raise InputUnreadable(
            f"no saved chat at {path}",
            "it does not exist" if not path.exists() else "it is not a file",
            "check the path, or leave out --load",
        )


def check_save_path(path: Path) -> None:
    """Raise UsageError where a chat cannot be written, or would replace a file that holds no chat."""
    _check_output(path, "a chat", b"{", "chat.json")


def _check_output(path: Path, what: str, beginning: bytes, example: str) -> None:
    """beginning: of a file that holds such a thing, and may be replaced."""
    directory = path.parent
    if path.is_dir() or not directory.is_dir():
        reason = "it is a directory" if path.is_dir() else f"{directory} is not a directory"
        raise UsageError(
            f"cannot save {what} as {path}", reason, f"give the path of a file, such as {example}"
        )
    if path.exists():
        with path.open("rb") as file:
            start = file.read(64).lstrip()
        if start and not start.startswith(beginning):
            raise UsageError(
                f"will not write {what} over {path}",
                "that file holds something else",
                f"give another path, such as {example}",
            )
