"""The directory in which a checkpoint is being made, and what of it is done: survives being killed anywhere.

Owns the lock against a second writer, the identity of the work, the journal of finished units and the folder
of what only the work needs. A unit enters the journal after its bytes are on the disk. Knows nothing of what
units are.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal

from ernie_local.errors import UsageError, parameter

Resume = Literal["auto", "required", "never"]
_FOLDER = "work"  # inside the directory; gone before it gets its final name


class Work:
    """`OUT.partial`, locked for this process until `close`."""

    def __init__(self, directory: Path, identity: Mapping[str, str], resume: Resume = "auto") -> None:
        """Go on with the work in `directory` if it is the same, or begin anew.

        UsageError if another process works there, if the work there is another one (`auto`, `required`), if
        there is none (`required`), or if something else lies there. `never` throws away the work there.
        """
        self.directory = directory
        self._folder = directory / _FOLDER
        is_there = self._folder.is_dir()
        if resume == "required" and not is_there:
            raise UsageError(
                f"{directory} holds no work to resume",
                f"{parameter('resume', 'required')} was given",
                f"remove {parameter('resume')} to start from the beginning",
            )
        if not is_there:
            check_empty(directory)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        if is_there and resume == "never":
            self._clear()
        self._journal_path = self._folder / "journal.jsonl"
        self._check_identity(dict(identity))
        self.done: dict[str, dict[str, float]] = self._read_journal()
        self._journal = self._journal_path.open("a", encoding="utf-8")

    def record(self, unit: str, report: Mapping[str, float] | None = None) -> None:
        """Enter a unit whose bytes are on the disk."""
        self.done[unit] = dict(report or {})
        self._journal.write(json.dumps({"unit": unit, "report": self.done[unit]}) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def file(self, name: str) -> Path:
        """Where a file that only the work needs lies."""
        return self._folder / name

    def finish(self, out: Path) -> None:
        """Give the directory its final name, and drop what only the work needed."""
        self._journal.close()
        if out.is_dir():  # an empty one, which was checked before
            out.rmdir()
        # In this order: killed between the two, the checkpoint is there, with a folder too many.
        self.directory.rename(out)
        shutil.rmtree(out / _FOLDER)
        self._lock.close()

    def close(self) -> None:
        """Release the lock; everything recorded stays."""
        self._journal.close()
        self._lock.close()

    def _take_lock(self) -> IO[str]:
        lock = (self._folder / "lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise UsageError(
                f"another process is writing to {self.directory}",
                "two writers would mix their bytes",
                "wait for it, stop it, or name another directory",
            ) from error
        return lock

    def _clear(self) -> None:
        for path in self.directory.iterdir():
            if path.is_file():
                path.unlink()
        for path in self._folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def _check_identity(self, identity: dict[str, str]) -> None:
        path = self._folder / "identity.json"
        if not path.exists():
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(identity, indent=1), encoding="utf-8")
            temporary.replace(path)
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
        if differing:
            raise UsageError(
                f"{self.directory} holds other work: {', '.join(differing)} differ",
                "resuming would mix two checkpoints",
                f"give the settings of before, or start over with {parameter('resume', 'never')}",
            )

    def _read_journal(self) -> dict[str, dict[str, float]]:
        done: dict[str, dict[str, float]] = {}
        if not self._journal_path.exists():
            return done
        kept = 0
        with self._journal_path.open("rb") as file:
            for line in file:
                # A kill may leave half a line at the end: that unit is done again.
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                done[entry["unit"]] = entry["report"]
                kept += len(line)
        os.truncate(self._journal_path, kept)
        return done


def check_empty(directory: Path) -> None:
    """Raise UsageError unless `directory` is empty or not there."""
    if not directory.exists():
        return
    entries = len(list(directory.iterdir())) if directory.is_dir() else None
    if entries != 0:
        raise UsageError(
            f"{directory} is there and {'is a file' if entries is None else f'holds {entries} entries'}",
            "nothing is overwritten",
            "name a new directory, or move away what is there",
        )
