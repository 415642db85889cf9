"""Replaces a file in one step, so that a killed process or a power loss leaves the old content or the new."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ernie_local.errors import ErnieLocalError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """The path of a new file, which replaces `path` when the block ends without an error.

    After an error, also an OSError of the last step, the new file is removed and `path` is unchanged.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        yield temporary
        _put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path, what: str) -> Iterator[IO[bytes]]:
    """A file that only this user may read, which replaces `path` when the block ends without an error.

    ErnieLocalError, which calls the content `what`, if the file cannot be written.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            yield file.file
        _put(temporary, path)
    except OSError as error:
        raise ErnieLocalError(
            f"cannot write {what} to {path}",
            error.strerror or str(error),
            "give a path in a folder that you may write to",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flush the content of a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(directory: Path) -> None:
    """Flush to the disk which files the directory has: without it, a rename may be lost."""
    with suppress(OSError):  # some file systems of networks sync no directories
        sync_file(directory)


def _put(temporary: Path, path: Path) -> None:
    """Rename, after the content is on the disk: a rename may reach it before the content."""
    sync_file(temporary)
    temporary.replace(path)
    sync_names(path.parent)
