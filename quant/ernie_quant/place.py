"""Checks the place of a new checkpoint: that nothing is in the way, and that files can be written there.

A checkpoint is made in OUT.partial and then renamed to OUT, so both names have to be free.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ernie_local.checkpoint.files import HASHES_FILE
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.files import free_disk_bytes
from ernie_local.sizes import format_bytes
from ernie_local.strict_json import show

# Inside the directory; removed after it got its final name, the identity last.
WORK_FOLDER, IDENTITY_FILE = "work", "identity.json"
PIN_FILE = "source.json"  # the commit of a source on the hub


def has_work(directory: Path) -> bool:
    """Whether `directory` holds the work of a run."""
    return (directory / WORK_FOLDER).is_dir()


def is_made(out: Path) -> bool:
    """Whether `out` is complete but for the removal of its work: a run was killed at its very end."""
    return (out / WORK_FOLDER / IDENTITY_FILE).is_file() and (out / HASHES_FILE).is_file()


def partial_of(out: Path) -> Path:
    """The directory of the work until it is complete."""
    return out.with_name(out.name + ".partial")


def check_out(out: Path, source: Path) -> None:
    """Raise UsageError unless a checkpoint can be made as `out`: a new or empty directory outside `source`.

    Work of an earlier run may be there. Nothing is left behind.
    """
    if out.name in ("", ".."):
        raise _unusable(out, "the work lies beside it, in a directory of this name with .partial at its end")
    try:
        for directory, is_ours in ((out, is_made), (partial_of(out), has_work)):
            _check_name(directory)
            check_empty(directory, unless=is_ours)
        _check_outside(out, source)
        _check_writable(out.parent)
    except (OSError, ValueError) as error:  # a name too long for the system, or with a zero byte in it
        raise _unusable(out, getattr(error, "strerror", None) or str(error)) from error


def check_new_file(path: Path) -> None:
    """Raise UsageError unless a file can be made as `path`, where none is. Nothing is left behind."""
    try:
        if not path.is_symlink() and not path.exists():
            _check_writable(path.parent)
            return
        why = "it is a link that leads nowhere" if path.is_symlink() else "it is there already"
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    raise UsageError(
        f"no file can be written as {show(str(path))}",
        why,
        "name a new file, in a folder that you may write to",
    )


def check_empty(directory: Path, unless: Callable[[Path], bool] = lambda _: False) -> None:
    """Raise UsageError unless `directory` is empty or not there, or `unless` is true of it."""
    if not directory.exists():
        return
    try:
        entries = len(list(directory.iterdir())) if directory.is_dir() else None
    except FileNotFoundError:  # another process rehearsed its rename, and took it back
        return
    # Asked last: another process may just have begun its work there.
    if entries != 0 and not unless(directory):
        raise UsageError(
            f"{directory} is there and {'is a file' if entries is None else f'holds {entries} entries'}",
            "existing files are never overwritten",
            "name a new directory, or move its files away",
        )


def check_room(out: Path, num_bytes: int) -> None:
    """DoesNotFit where the disk of `out` has less than `num_bytes` free. Nothing is written."""
    free = free_disk_bytes(out)
    if free < num_bytes:
        raise DoesNotFit(
            f"{out} takes {format_bytes(num_bytes)}, {num_bytes} bytes, and {free} are free on its disk",
            "all of it is written before it gets its name, and nothing was written yet",
            "free that much on the disk, or name a directory on another disk",
        )


def rehearse_rename(folder: Path, out: Path) -> None:
    """Give a directory inside `folder` the name `out`, as the checkpoint gets it at the end, and remove it.

    UsageError if that fails. An empty directory `out` stays.
    """
    was_there = out.exists()
    rehearsal = folder / "rehearsal"
    try:
        rehearsal.mkdir(exist_ok=True)
        rehearsal.rename(out)
        if not was_there:
            out.rmdir()
    except OSError as error:
        raise _unusable(out, error.strerror or str(error)) from error


@contextmanager
def telling_full_disk(folder: Path, kept: str) -> Iterator[None]:
    """Inside, a write to `folder` that finds the disk full ends as DoesNotFit, which says what is `kept`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DoesNotFit(
            f"the disk is full: {folder} cannot grow, {shutil.disk_usage(folder).free} bytes are free",
            f"{error.strerror}, after the space was enough at the start; {kept}",
            "free space on the disk, and run the same command again",
        ) from error


def _check_name(directory: Path) -> None:
    """Refuse what cannot be renamed, or replaced by a rename."""
    if directory.is_symlink():
        raise UsageError(
            f"{directory} is a link to {show(str(directory.readlink()))}",
            "the finished checkpoint gets this name, and would replace the link and not what it leads to",
            "name the directory that it leads to, or remove the link",
        )
    if directory.is_mount():
        raise _unusable(directory, "a file system is mounted there, and a mounted directory has a fixed name")


def _check_outside(out: Path, source: Path) -> None:
    inside = Path(os.path.realpath(out))
    if any(parent.exists() and parent.samefile(source) for parent in (inside, *inside.parents)):
        raise UsageError(
            f"{out} lies in {source}, the model that is read",
            "the files of two models would be mixed",
            "name a directory outside of it",
        )


def _check_writable(folder: Path) -> None:
    """Make a directory where the first missing one would be made, and remove it; OSError if that fails."""
    existing = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not existing.is_dir():
        kind = "a link that leads nowhere" if existing.is_symlink() else "not a directory"
        raise NotADirectoryError(errno.ENOTDIR, f"{existing} is {kind}")
    with tempfile.TemporaryDirectory(dir=existing, prefix=".ernie-local."):
        pass


def _unusable(out: Path, why: str) -> UsageError:
    return UsageError(
        f"no checkpoint can be written as {show(str(out))}",
        why,
        "name a new directory, in a folder that you may write to",
    )
