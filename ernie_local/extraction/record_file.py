"""Appends records to a file of JSON lines, so that a run that was killed goes on where it ended.

A record is written in one piece and flushed to the disk. Beside the file, `NAME.state` says of which run it
is: records of another schema, model or question are never mixed into it. Two processes cannot write to it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ernie_local.errors import ErnieLocalError, InputUnreadable, UsageError, parameter
from ernie_local.extraction.record import Record, parse_record
from ernie_local.files import open_plain, place_of_new_file, read_plain, sync_names, written_whole

_STATE_BYTES = 1 << 20
_VERSION = "ernie-local.extract/2"
_BEGINNING = b'{"file": '


class RecordFile:
    """The open file. done: keys of the records in it. num_broken: how many of them are errors."""

    def __init__(self, path: Path, descriptor: int, begin: Callable[[], None] | None = None) -> None:
        """descriptor: of `path`, locked, for reading and writing. begin: called before the first record of a
        run that starts over, whose old records are kept until then.
        """
        self.path, self._descriptor, self._begin = path, descriptor, begin
        self.done: set[tuple[str, int | None]] = set()
        self.num_broken = 0
        self._size = 0

    def append(self, record: Record) -> None:
        """Write a record; when this returns it is on the disk. After an OSError the file is as before."""
        line = record.to_json().encode() + b"\n"
        if self._begin is not None:
            self._begin()
            self._begin = None
        try:
            if (written := os.pwrite(self._descriptor, line, self._size)) < len(line):
                # A full disk takes the first part; the rest tells what is wrong.
                written += os.pwrite(self._descriptor, line[written:], self._size + written)
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise ErnieLocalError(
                f"{self.path}: the record of {record.file} cannot be written: {error.strerror}",
                f"{len(self.done)} records are in it, each whole",
                "make room, and run the same command again: it goes on from there",
            ) from error
        self._size += len(line)
        self._count(record)

    def _count(self, record: Record) -> None:
        self.done.add(record.key)
        self.num_broken += record.error is not None

    def _read(self) -> None:
        """Count the records, and cut off half a line at the end, which a killed run may leave."""
        for number, line in enumerate(_lines(self.path), 1):
            if not line.endswith(b"\n"):
                break
            self._count(parse_record(_text(line, self.path, number), f"line {number} of {self.path}"))
            self._size += len(line)
        os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)


def state_path(path: Path) -> Path:
    """The file beside the records at `path` that says of which run they are."""
    return path.with_name(f"{path.name}.state")


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, one after the other; half a line at its end is left out. InputUnreadable for
    other lines."""
    for number, line in enumerate(_lines(path), 1):
        if line.endswith(b"\n"):
            yield parse_record(_text(line, path, number), f"line {number} of {path}")


def find_done(path: Path, identity: Mapping[str, str]) -> set[tuple[str, int | None]]:
    """Keys of the records at `path`, which a run of this identity would not read again; writes nothing.

    Errors as of `open_record_file`, but for a file that another process writes to.
    """
    if not path.exists() or path.stat().st_size == 0:
        return set()
    state = state_path(place_of_new_file(path))
    _check_holds_records(path, state)
    _check_identity(path, state, identity)
    return {record.key for record in read_records(path)}


@contextmanager
def open_record_file(path: Path, identity: Mapping[str, str], *, resume: bool = True) -> Iterator[RecordFile]:
    """The file at `path`, new or with the records of an earlier run.

    identity: what records depend on, by a name for the user, such as "schema". resume: False begins anew,
    with the first record that is appended: a run that never gets there leaves the old records.
    UsageError where another process writes to the file, where it holds something else, or records of another
    identity, which it names; ErnieLocalError where it cannot be written.
    """
    try:
        place = place_of_new_file(path)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        _lock(descriptor, path)
        state = state_path(place)
        is_empty = os.fstat(descriptor).st_size == 0
        if not is_empty:
            _check_holds_records(path, state)
        if resume and not is_empty:
            _check_identity(path, state, identity)
            file = RecordFile(path, descriptor)
            file._read()
        else:
            file = RecordFile(path, descriptor, partial(_start_over, descriptor, state, identity))
        yield file
    finally:
        os.close(descriptor)  # and with it the lock


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(
            f"another process is writing to {path}",
            "two writers would mix their records",
            "wait for it, stop it, or give another file",
        ) from error


def _check_holds_records(path: Path, state: Path) -> None:
    with open_plain(path) as file:
        begins_like_a_record = file.read(len(_BEGINNING)) == _BEGINNING
    if not (state.exists() or begins_like_a_record):
        raise UsageError(
            f"{path} holds something else than records",
            "they would be written into it",
            "give another path",
        )


def _check_identity(path: Path, state: Path, identity: Mapping[str, str]) -> None:
    hint = f"another file, or {parameter('resume', 'never')} starts over"
    try:
        before = json.loads(read_plain(state, _STATE_BYTES))
        if not isinstance(before, dict) or before.get("version") != _VERSION:
            raise ValueError(f"it is no state of {_VERSION}")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be continued: {state} cannot be read",
            f"it says which schema and model the records are of: {error}",
            hint,
        ) from error
    differing = [name for name in identity if before.get(name) != identity[name]]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{path} holds records of another run: {', '.join(differing)} differ",
            f"{name} was {_shown(before.get(name))}, and is {_shown(identity[name])}",
            hint,
        )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _start_over(descriptor: int, state: Path, identity: Mapping[str, str]) -> None:
    """Empty the file, and only then say that it is of this run."""
    os.ftruncate(descriptor, 0)
    os.fsync(descriptor)
    with written_whole(state, "the state of the run") as file:
        file.write(json.dumps({"version": _VERSION, **identity}, indent=1).encode())
    sync_names(state.parent)


def _lines(path: Path) -> Iterator[bytes]:
    with open_plain(path) as file:
        yield from file


def _text(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputUnreadable(
            f"line {number} of {path} is not a record of `extract`",
            str(error),
            "restore the file from a copy",
        ) from error


def _unwritable(path: Path, error: OSError) -> ErnieLocalError:
    return ErnieLocalError(
        f"cannot write records to {path}",
        error.strerror or str(error),
        "give a path in a folder that you may write to; without one, records go to stdout",
    )
