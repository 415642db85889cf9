"""Opens plain files and nothing else, replaces a file in one step, and tells what is free on a disk.

A pipe would wait for a writer, and a device may never end: neither is opened where a plain file is expected.
After a replacement, even by a killed process or a power loss, a file has the old content or the new.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ernie_local.errors import ErnieLocalError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Should a pipe take the file's place after it was looked at, opening it does not wait.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def free_disk_bytes(path: Path) -> int:
    """What is free on the disk of `path`, which need not be there yet."""
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def check_plain(path: str | os.PathLike[str]) -> os.stat_result:
    """The status of the file that `path` leads to. OSError where it is not there, or not a plain file."""
    return _checked_plain(Path(path).stat(), path)


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """A descriptor to read the plain file `path`; OSError as by `check_plain`."""
    check_plain(path)
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        _checked_plain(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_plain(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The plain file `path`, open for reading; OSError as by `check_plain`."""
    # An opener keeps the name of the file, which a descriptor would replace by its number.
    return open(path, "rb", opener=lambda name, _: open_descriptor(name))


def read_plain(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """All bytes of the plain file `path`; OSError as by `check_plain`, and for more than `limit_bytes`."""
    with open_plain(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        # A file of /proc tells a size of 0.
        content = b"" if num_bytes > limit_bytes else file.read((num_bytes or limit_bytes) + 1) or b""
    if max(num_bytes, len(content)) > limit_bytes:
        reason = f"it has {max(num_bytes, len(content))} bytes, over the limit of {limit_bytes}"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return content


def _checked_plain(status: os.stat_result, path: str | os.PathLike[str]) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is not a plain file, but {kind}", os.fspath(path))
    return status


def place_of_new_file(path: Path) -> Path:
    """Where links lead to; OSError where something lies there that is not a plain file.

    A link would be replaced instead of the file behind it, and a device would be gone for everybody.
    """
    with suppress(FileNotFoundError):
        check_plain(path)
    return Path(os.path.realpath(path))


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """The path of a new file, which replaces `path` when the block ends without an error.

    After an error, also an OSError of the last step, the new file is removed and `path` is unchanged. OSError
    where something other than a plain file lies there.
    """
    path = place_of_new_file(path)
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
    with _naming_failures(path, what):
        try:
            place = place_of_new_file(path)
            with tempfile.NamedTemporaryFile(
                dir=place.parent, prefix=f".{place.name}.", delete=False
            ) as file:
                temporary = Path(file.name)
                yield file.file
            _put(temporary, place)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextmanager
def shared_file(path: Path, what: str) -> Iterator[Path]:
    """The path of a new file with the rights of any new file, which replaces `path` as by `written_whole`."""
    temporary: Path | None = None
    with _naming_failures(path, what):
        try:
            place = place_of_new_file(path)
            temporary = place.with_name(f".{secrets.token_hex(8)}.new")
            yield temporary
            _put(temporary, place)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextmanager
def _naming_failures(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ErnieLocalError(
            f"cannot write {what} to {path}",
            error.strerror or str(error),
            "give a path in a folder that you may write to",
        ) from error


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
