"""What is asked, put together from -p, --image and a piped stdin, and looked at before any model is loaded.

Owns who may read stdin. Knows nothing of models and imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

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

    An image that comes from stdin is left there for whoever opens the images.

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
            "--json has no question to answer", "it prints one object for one question", _ASK_WITH_PROMPT
        )
    if prompt is not None:
        prompt = _checked(prompt, source)
    return Request(prompt, tuple(images))


def reads_stdin(image: str) -> bool:
    """Whether --image with this value takes an image from stdin."""
    return split_page_request(image)[0] == STDIN_MARK


def _check_readers(prompt: str | None, num_image_readers: int, interactive: bool, is_terminal: bool) -> None:
    """One reader of stdin at most, and a pipe for an image."""
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
            f"stdin is wanted {len(readers)} times ({', '.join(readers)}), and can be read once",
            "a pipe carries one thing",
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
