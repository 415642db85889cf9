"""Replaces a file in one step, so that a reader or a kill finds the old content or the new, never a part."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ernie_local.errors import ErnieLocalError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """The path of a new file, which takes the place of `path` when the block ends without an error.

    It has the permissions of any new file. An OSError of the last step is the caller's; after any error the
    new file is gone and `path` is what it was.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path, what: str) -> Iterator[IO[bytes]]:
    """A file to write to, for this user alone, which takes the place of `path` when the block ends well.

    what: names the content in the ErnieLocalError for a file that cannot be written.
    """
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            yield file.file
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise ErnieLocalError(
            f"cannot write {what} to {path}",
            error.strerror or str(error),
            "give a path in a folder that you may write to",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
