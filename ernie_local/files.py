"""Files that are there whole or not at all: written beside their place, then put there in one step.

Knows nothing of what is in them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ernie_local.errors import ErnieLocalError


@contextmanager
def written_whole(path: Path, what: str) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block ends without an error.

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
            "give the path of a file in a folder that can be written to",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
