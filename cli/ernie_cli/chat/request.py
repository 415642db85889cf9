"""Checks what a chat is asked before any file of the model is opened: options, files, and who reads stdin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from ernie_cli.chat.options import ChatOptions
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import open_plain, place_of_new_file
from ernie_local.media.pages import split_page_request

STDIN_MARK = "-"
_ASK_WITH_PROMPT = 'add the question as -p "What is the total?"'


def read_questions(options: ChatOptions, stdin: TextIO | None) -> tuple[str, ...]:
    """The questions of this run, from stdin where an option or a pipe says so; none: a person will type.

    An image that comes from stdin stays there. stdin: None where it is closed (`<&-`).

    Raises UsageError where nothing could be asked or stdin is wanted twice, InputUnreadable where
    the text is not UTF-8.
    """
    is_terminal = stdin is not None and stdin.isatty()
    _check_readers(options, is_terminal)
    prompts = options.prompts
    if not prompts and not options.interactive and not is_terminal:
        prompts = (STDIN_MARK,)
    if options.as_json and (not prompts or options.interactive):
        raise UsageError(
            "--json without a question", "it prints one object for one question", _ASK_WITH_PROMPT
        )
    if options.draw is not None and (not prompts or options.interactive):
        raise UsageError(
            "--draw without a question", "it draws what the answer to -p names", "/draw FILE during the chat"
        )
    return tuple(
        _checked(_decode(b"" if stdin is None else stdin.buffer.read()), "stdin")
        if prompt == STDIN_MARK
        else _checked(prompt, "-p")
        for prompt in prompts
    )


def _reads_stdin(image: str) -> bool:
    """Whether --image with this value takes an image from stdin."""
    return split_page_request(image)[0] == STDIN_MARK


def _check_readers(options: ChatOptions, is_terminal: bool) -> None:
    """At most one reader of stdin, and a pipe for an image."""
    num_image_readers = sum(map(_reads_stdin, options.images))
    if num_image_readers and not options.prompts and not options.interactive:
        raise UsageError("no question was given", "stdin carries the image of --image -", _ASK_WITH_PROMPT)
    if num_image_readers and is_terminal:
        raise UsageError(
            "--image - reads an image from stdin, which is a terminal",
            "an image cannot be typed",
            "pipe it in: ernie-local chat -p TEXT --image - < invoice.png",
        )
    readers = (
        ["-p -"] * options.prompts.count(STDIN_MARK)
        + ["--image -"] * num_image_readers
        + ["--interactive"] * options.interactive
    )
    if len(readers) > 1:
        raise UsageError(
            f"stdin is wanted {len(readers)} times ({', '.join(readers)}) and can be read once",
            "a pipe carries one input",
            "give the others as files or as text on the command line",
        )


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputUnreadable(
            f"stdin is not text: byte {error.start + 1} of {len(data)} is 0x{data[error.start]:02x}",
            "a piped stdin is read as the question, in UTF-8",
            "for an image: --image - together with -p; for text in another encoding: iconv -t utf-8",
        ) from error


def _checked(question: str, source: str) -> str:
    """The question without the newline of its pipe."""
    text = question.strip("\r\n")
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
    options.check_form()
    options.check_tools(options.form is not None, options.load is not None)
    options.check_memory()
    options.check_lengths(options.context_tokens())
    if options.load is not None:
        if options.system is not None:
            raise UsageError(
                "--system with --load", "a saved chat has its own system text", "remove one of them"
            )
        if not options.load.is_file():
            raise InputUnreadable(
                f"no saved chat at {options.load}",
                "it does not exist" if not options.load.exists() else "it is not a file",
                "check the path, or remove --load",
            )
    if options.trace is not None:
        check_output_path(options.trace, "a trace", b"PK", "chat.trace")
    if options.draw is not None:
        check_drawing_path(options.draw)
    if options.save is not None:
        check_save_path(options.save)
        if any(_reads_stdin(image) for image in options.images):
            raise UsageError(
                "--save with --image -",
                "a saved chat names the files of its images, and a pipe has no name",
                "give the image as a file",
            )


def check_save_path(path: Path) -> None:
    """Raise UsageError where a chat cannot be written, or would replace a file that holds no chat."""
    check_output_path(path, "a chat", b"{", "chat.json")


def check_drawing_path(path: Path) -> None:
    """Raise UsageError where a drawing cannot be written, or would replace a file that is no PNG image."""
    check_output_path(path, "a drawing", b"\x89PNG", "boxes.png")


def check_output_path(path: Path, what: str, beginning: bytes | tuple[bytes, ...], example: str) -> None:
    """Raise UsageError where a file cannot be written, or would replace one that is no such file.

    beginning: the first bytes of such a file, which may be replaced.
    """
    try:
        directory = place_of_new_file(path).parent
        reason = "" if directory.is_dir() else f"{directory} is not a directory"
        if path.exists() and os.path.samestat(path.stat(), os.fstat(1)):
            reason = "it is stdout, where the answer goes"
    except OSError as error:  # a pipe such as /dev/stdout is not waited for
        reason = error.strerror or str(error)
    if reason:
        raise UsageError(
            f"cannot save {what} as {path}", reason, f"give the path of a file, such as {example}"
        )
    if path.exists():
        with open_plain(path) as file:
            start = file.read(64).lstrip()
        if start and not start.startswith(beginning):
            raise UsageError(
                f"will not write {what} over {path}",
                "the file is something else",
                f"give another path, such as {example}",
            )
