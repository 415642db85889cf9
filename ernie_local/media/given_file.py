"""Opens a file that a user names as an image or a video, and refuses what is none before it waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ernie_local.errors import InputUnreadable
from ernie_local.files import open_plain


def is_there(text: str) -> bool:
    """Whether something lies at the path `text`."""
    try:
        Path(text).stat()
    except (OSError, ValueError):
        return False
    return True


def open_given(path_text: str, kind: str) -> BinaryIO:
    """The file at `path_text`, for reading. kind: what it is to be, such as "an image".

    InputUnreadable where it is not there, a folder, a pipe or a device, or may not be read.
    """
    path, noun = Path(path_text), _noun(kind)
    with reporting_unreadable(path_text, kind):
        if path_text.startswith("~") and not is_there(path_text):
            path = path.expanduser()
        if path.is_dir():
            raise InputUnreadable(
                f"{path_text}: is a folder, not {kind}",
                f"{noun}s are given one by one, so that their order is clear",
                "name a file in it",
            )
        if path.is_fifo() or path.is_char_device():
            of_pipe = "give its bytes on standard input: - in place of the path"
            raise InputUnreadable(
                f"{path_text}: is a pipe or a device, not a file",
                "it could be read once, or without end, and a file is read again when a chat goes on",
                of_pipe if noun == "image" else "save it as a file first",
            )
        return open_plain(path)


@contextmanager
def reporting_unreadable(path_text: str, kind: str) -> Iterator[None]:
    """Turn what the system says of a file into InputUnreadable. kind: as of `open_given`."""
    try:
        yield
    except FileNotFoundError as error:
        noun = _noun(kind)
        written = "pages are written invoice.pdf:1-3" if noun == "image" else "a part is clip.mp4@00:10-00:35"
        raise InputUnreadable(
            f"{path_text}: no such file",
            f"nothing is at {Path(path_text).absolute()}",
            f"check the spelling ({written}), and download {noun}s from the web first",
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputUnreadable(
            f"{path_text}: cannot be read",
            reason,
            "check the path and the rights to read it",
        ) from error


def _noun(kind: str) -> str:
    return kind.rsplit(maxsplit=1)[-1]
