"""Keeps a quantizing run resumable: OUT.partial with its lock, identity and journal of finished units.

A unit is `weights of PART` of the source, a tensor's name, `sequence NUMBER`, `expert LAYER.BANK.ID` or
`layer ID`. It enters the journal after its bytes are on the disk, so a run may be killed at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Literal

import msgspec
import torch

import ernie_local
from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import Bank
from ernie_local.errors import ModelUnusable, Stopped, UsageError, parameter
from ernie_local.files import open_plain, replaced, sync_names
from ernie_quant.foreign import FOREIGN_PACKAGES
from ernie_quant.pace import Pace
from ernie_quant.place import IDENTITY_FILE, PIN_FILE, WORK_FOLDER, check_empty, has_work, is_made
from ernie_quant.recipe import Recipe

ResumeMode = Literal["auto", "required", "never"]
_JOURNAL, _LOCK = "journal.jsonl", "lock"
_BEGUN = "begun"  # the first unit, which stands for no work


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the journal."""

    unit: str
    report: dict[str, int | float]  # whole numbers stay whole


class Work:
    """The work of a run in its directory, OUT.partial, locked for this process until `close`."""

    def __init__(self, directory: Path, identity: dict[str, str], resume: ResumeMode = "auto") -> None:
        """Resume the work in `directory` if it is the same, or start a new one.

        UsageError if another process works there, if the directory holds different work (`auto`, `required`),
        no work (`required`) or other files; ModelUnusable for damaged work. `never` deletes the work that is
        there.
        """
        self.directory = directory
        self.folder = directory / WORK_FOLDER  # for temporary files
        is_there = has_work(directory)
        check_resume(directory, resume)
        if not is_there:
            check_empty(directory)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._identity_path = self.folder / IDENTITY_FILE
        self._journal_path = self.folder / _JOURNAL
        self.done: dict[str, dict[str, float]] = {}
        try:
            if is_there and resume == "never":
                self._clear()
            self._begin(identity)
        except BaseException:
            self._lock.close()
            raise
        self._journal = self._journal_path.open("a", encoding="utf-8")

    def record(self, unit: str, report: Mapping[str, float] | None = None) -> None:
        """Record a unit whose bytes are on the disk."""
        self.done[unit] = dict(report or {})
        self._journal.write(_line(unit, self.done[unit]))
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def finish(self, out: Path) -> None:
        """Give the directory its final name, and delete the temporary files.

        UsageError if something has taken the name meanwhile; the work stays.
        """
        sync_names(self.directory)
        try:
            self.directory.rename(out)  # replaces an empty directory
        except OSError as error:
            raise UsageError(
                f"the checkpoint is complete in {self.directory}, and cannot be renamed to {out}",
                error.strerror or str(error),
                f"move away what is in the place of {out}, and run the same command again",
            ) from error
        sync_names(out.parent)
        self.directory, self.folder = out, out / WORK_FOLDER
        self.remove()

    def remove(self) -> None:
        """Delete the temporary files of a complete checkpoint, and release the lock.

        The identity goes last: a run that was killed here is known by it, and the same command goes on.
        """
        self._journal.close()
        last = (_LOCK, _JOURNAL, PIN_FILE, IDENTITY_FILE)
        for path in self.folder.iterdir():
            if path.name not in last:
                _delete(path)
        for name in last:
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()
        self._lock.close()

    def close(self) -> None:
        """Release the lock; recorded units stay."""
        self._journal.close()
        self._lock.close()

    def _take_lock(self) -> IO[str]:
        lock = (self.folder / _LOCK).open("a", encoding="utf-8")
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
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                _delete(path)

    def _begin(self, identity: dict[str, str]) -> None:
        """Read what is done; where nothing is, write whose work this is."""
        # Weights without an identity: of them nothing is known.
        holds_files = any(path.name != WORK_FOLDER for path in self.directory.iterdir())
        if holds_files or self._journal_path.exists():
            self._check_identity(identity)
            # Of a complete checkpoint it is removed before the identity.
            if self._journal_path.exists() or not is_made(self.directory):
                self._read_journal()
            return
        _write_whole(self._identity_path, json.dumps(identity, indent=1))
        # Never empty: a journal without a line has lost them.
        _write_whole(self._journal_path, _line(_BEGUN, {}))
        sync_names(self.directory)
        sync_names(self.directory.parent)

    def _check_identity(self, identity: dict[str, str]) -> None:
        try:
            before = msgspec.json.decode(self._identity_path.read_bytes(), type=dict[str, str])
        except (OSError, ValueError) as error:  # also what msgspec raises
            raise damaged_work(self._identity_path, str(error)) from error
        differing = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
        if differing and is_made(self.directory):
            check_empty(self.directory)  # a complete checkpoint of other settings
        if differing:
            raise UsageError(
                f"{self.directory} holds other work: {', '.join(differing)} differ",
                "resuming would mix two checkpoints",
                f"use the settings of that work, or start again with {parameter('resume', 'never')}",
            )

    def _read_journal(self) -> None:
        kept = 0
        try:
            with self._journal_path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    # A kill may leave half a line at the end; that unit is repeated.
                    if not line.endswith(b"\n"):
                        break
                    try:
                        entry = msgspec.json.decode(line, type=_Entry)
                    except ValueError as error:
                        raise damaged_work(self._journal_path, f"line {number}: {error}") from error
                    self.done[entry.unit] = dict(entry.report)
                    kept += len(line)
        except OSError as error:
            raise damaged_work(self._journal_path, error.strerror or str(error)) from error
        if kept == 0:
            raise damaged_work(self._journal_path, "it has no whole line, and the first is written with it")
        os.truncate(self._journal_path, kept)


def check_resume(directory: Path, resume: ResumeMode) -> None:
    """Raise UsageError where work is required and `directory` holds none."""
    if resume == "required" and not has_work(directory):
        raise UsageError(
            f"{directory} holds no work to resume",
            f"{parameter('resume', 'required')} was given",
            "omit it to start from the beginning",
        )


def _line(unit: str, report: Mapping[str, float]) -> str:
    return json.dumps({"unit": unit, "report": report}) + "\n"


def _write_whole(path: Path, text: str) -> None:
    with replaced(path) as new:
        new.write_text(text, encoding="utf-8")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damaged_work(path: Path, why: str) -> ModelUnusable:
    """The error for a file of the work that is not as this code wrote it."""
    hint = f"start again with {parameter('resume', 'never')}, or name another directory"
    if is_made(path.parent.parent):
        hint = f"the checkpoint is complete: delete {path.parent}, which is left of the work"
    return ModelUnusable(f"{path} is damaged, so the work that was begun cannot go on", why, hint)


# Its name, the seconds so far, earlier runs included, and about the seconds of all.
OnUnit = Callable[[str, float, float], None]


def tell_nobody(*_told: object) -> None:
    """Ignore what nobody asked to be told: the default of callbacks."""


def expert_unit(layer_id: int, bank: Bank, expert_id: int) -> str:
    """The name of an expert."""
    return f"expert {layer_id}.{bank}.{expert_id}"


class Units:
    """Records finished units in the journal, and tells the caller."""

    def __init__(
        self,
        work: Work,
        files: CheckpointFiles,
        costs: Mapping[str, float],
        pace: Pace,
        seconds_after: float,
        on_unit: OnUnit,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """costs: of every unit; pace: what it takes; seconds_after: what follows the last unit."""
        self.work, self.files, self._pace = work, files, pace
        self.done = work.done  # the reports of units that this run or an earlier one finished
        self._on_unit, self._should_stop = on_unit, should_stop
        self._num_units, self._seconds_after = len(costs), seconds_after
        self._left = {unit: cost for unit, cost in costs.items() if unit not in self.done}
        done_before = {unit: cost for unit, cost in costs.items() if unit in self.done}
        self._seconds_before = pace.seconds(done_before)
        self._began = self._counted = time.monotonic()
        self._spent: defaultdict[str, float] = defaultdict(float)  # on units that are not finished
        self._tell("")

    def tell(self, what: str, seconds_after: float) -> None:
        """Tell the caller what is done now that all units are; it and what follows take `seconds_after`."""
        self._seconds_after = seconds_after
        self._tell(what)

    def count_for(self, unit: str) -> None:
        """Count the time since the last unit for this one, which is not finished."""
        now = time.monotonic()
        self._spent[unit] += now - self._counted
        self._counted = now

    def _tell(self, what: str) -> None:
        self._on_unit(what, *self._seconds())

    def _seconds(self) -> tuple[float, float]:
        """Those so far, and about those of all."""
        done = self._seconds_before + time.monotonic() - self._began
        return done, done + self._pace.seconds(self._left) + self._seconds_after

    def finish(self, unit: str, report: Mapping[str, float] | None = None) -> None:
        """Sync its bytes to the disk and record it. Stopped as from `check_stop`."""
        self.files.sync()
        self.work.record(unit, report)
        self.count_for(unit)
        self._pace.learn(unit, self._spent.pop(unit))
        del self._left[unit]
        self._tell(unit)
        self.check_stop()

    def check_stop(self) -> None:
        """Raise Stopped if the caller asks for it; recorded units stay."""
        if self._should_stop is not None and self._should_stop():
            done, of_all = self._seconds()
            raise Stopped(
                f"stopped after {self._num_units - len(self._left)} of {self._num_units} units, "
                f"{done / of_all:.0%} of the work",
                f"a stop was requested; finished units are in {self.work.directory}",
                "run the same command again to resume",
            )


_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10


def source_identity(directory: Path) -> str:
    """A hash of config.json, and of sizes and evenly spaced samples of all weight files.

    Reading 58 GB would take minutes, and another checkpoint differs in every sample.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with open_plain(path) as file:
            for sample in range(_SAMPLES):
                file.seek(size * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def calibration_identity(sequences: Iterable[EncodedSample]) -> str:
    """A hash of all ids and pixels, in order."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(json.dumps(sequence.token_ids).encode())
        for patches in sequence.patches:
            digest.update(patches.pixel_values.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def version_identity(recipe: Recipe | None = None) -> str:
    """The versions that the bytes depend on, with that of the library that the recipe uses."""
    versions = f"ernie-local {ernie_local.__version__}, torch {torch.__version__}"
    package = None if recipe is None else FOREIGN_PACKAGES.get(recipe.method)
    return versions if package is None else f"{versions}, {package} {importlib.metadata.version(package)}"
