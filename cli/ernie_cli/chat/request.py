"""Checks what a chat is asked before any file of the model is opened: options, files, and who reads stdin."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ernie_cli.chat.options import ChatOptions
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media.pages import split_page_request

STDIN_MARK = "-"
_ASK_WITH_PROMPT = 'add the question as -p "What is the total?"'


@dataclass(frozen=True, slots=True)
class Request:
    """One question, or none when a person will type them; `images` as they stand on the command line."""

    prompt: str | None
    images: tuple[str, ...]


def read_request(
    prompt: str | None,
    images: Sequence[str],
    *,
    interactive: bool,
    as_json: bool,
    stdin: TextIO | None = None,
) -> Request:
    """The question and the images of this run; the question comes from stdin where a flag or pipe says so.

    An image that comes from stdin stays there.

    Raises UsageError where nothing could be asked or stdin is wanted twice, InputUnreadable where
    the text is not UTF-8.
    """
    stdin = sys.stdin if stdin is None else stdin
    is_terminal = stdin is not None and stdin.isatty()
    num_image_readers = sum(map(reads_stdin, images))
    _check_readers(prompt, num_image_readers, interactive, is_terminal)
    if prompt == STDIN_MARK or (prompt is None and not interactive and not is_terminal):
        prompt = _decode(_read_bytes(stdin))
        source = "stdin"
    else:
        source = "-p"
    if as_json and (prompt is None or interactive):
        raise UsageError(
            "--json without a question", "it prints one object for one question", _ASK_WITH_PROMPT
        )
    if prompt is not None:
        prompt = _checked(prompt, source)
    return Request(prompt, tuple(images))


def reads_stdin(image: str) -> bool:
    """Whether --image with this value takes an image from stdin."""
    return split_page_request(image)[0] == STDIN_MARK


def _check_readers(prompt: str | None, num_image_readers: int, interactive: bool, is_terminal: bool) -> None:
    """At most one reader of stdin, and a pipe for an image."""
    if num_image_readers and prompt is None and not interactive:
        raise UsageError("no question was given", "stdin carries the image of --image -", _ASK_WITH_PROMPT)
    if num_image_readers and is_terminal:
        raise UsageError(
            "--image - reads an image from stdin, which is a terminal",
            "an image cannot be typed",
            "pipe it in: ernie-local chat -p TEXT --image - < invoice.png",
        )
    readers = (
        ["-p -"] * (prompt == STDIN_MARK)
        + ["--image -"] * num_image_readers
        + ["--interactive"] * interactive
    )
    if len(readers) > 1:
        raise UsageError(
            f"stdin is wanted {len(readers)} times ({', '.join(readers)}) and can be read once",
            "a pipe carries one input",
            "give the others as files or as text on the command line",
        )


def _read_bytes(stdin: TextIO | None) -> bytes:
    # A closed stdin (`<&-`) is None in Python.
    return b"" if stdin is None else stdin.buffer.read()


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputUnreadable(
            f"stdin is not text: byte {error.start + 1} of {len(data)} is 0x{data[error.start]:02x}",
            "a piped stdin is read as the question, in UTF-8",
            "for an image: --image - together with -p; for text in another encoding: iconv -t utf-8",
        ) from error


def _checked(prompt: str, source: str) -> str:
    """The prompt without the newline of its pipe."""
    text = prompt.strip("\r\n")
    if not text.strip():
        raise UsageError(
            f"the question from {source} is empty (0 characters)", "there is nothing to ask", _ASK_WITH_PROMPT
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
        raise InputUnreadable(
            f"the question from {source} is not UTF-8 text (character {error.start + 1} of {len(text)})",
            "the tokenizer reads UTF-8",
            "check the encoding of the terminal or script",
        ) from error
    return text


def check_chat_options(options: ChatOptions) -> None:
    """Raise for options that contradict each other, and for files that cannot be read or written."""
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
            f"--think-budget {options.think_budget} with --think off",
            "there are no thoughts to limit",
            "remove one of them",
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
                "--save with --image -",
                "a saved chat names the files of its images, and a pipe has no name",
                "give the image as a file",
            )


def check_is_number(option: str, value: float) -> None:
    """Raise UsageError for nan, which passes all bounds."""
    if math.isnan(value):
        raise UsageError(f"{option} nan is not a number", "it must be from 0 to 1", f"{option} 0.1")


def _check_chat_file(path: Path, system: str | None) -> None:
    if system is not None:
        raise UsageError(
            "--system with --load",
            "a saved chat has its own system text",
            "remove one of them",
        )
    if not path.is_file():
        raise InputUnreadable(
            f"no saved chat at {path}",
            "it does not exist" if not path.exists() else "it is not a file",
            "check the path, or remove --load",
        )


def check_save_path(path: Path) -> None:
    """Raise UsageError where a chat cannot be written, or would replace a file that holds no chat."""
    _check_output(path, "a chat", b"{", "chat.json")


def _check_output(path: Path, what: str, beginning: bytes, example: str) -> None:
    """beginning: the first bytes of such a file, which may be replaced."""
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
                "the file is something else",
                f"give another path, such as {example}",
            )
