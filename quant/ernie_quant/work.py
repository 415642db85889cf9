"""Keeps a quantizing run resumable: OUT.partial with its locks, identity and journal of finished units.

A unit is a tensor's name, or a word with the place of the work, as `plan.unit_costs` lists them. It enters
the journal after its bytes are on the disk, so a process may be killed at any time. Several processes may
work in the directory: what each one takes is a locked byte of the file `lock`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import torch

import ernie_local
from ernie_calibration.sequences import EncodedSample
from ernie_local.adapters.low_rank import Adapter
from ernie_local.adapters.source import AdapterSource
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.errors import DoesNotFit, ModelUnusable, UsageError, parameter
from ernie_local.files import open_plain, replaced, sync_names
from ernie_local.reuse.identity import adapter_digest
from ernie_quant.byte_locks import ByteLocks
from ernie_quant.foreign import FOREIGN_PACKAGES
from ernie_quant.place import IDENTITY_FILE, PIN_FILE, WORK_FOLDER, check_empty, has_work, is_made
from ernie_quant.recipe import Recipe

ResumeMode = Literal["auto", "required", "never"]
_JOURNAL, _LOCK = "journal.jsonl", "lock"
_BEGUN = "begun"  # the first unit, which stands for no work
FILES_UNIT = "files"  # those of the weights are there, with their headers
# Bytes of the lock: who prepares or ends the work; all who take part; who uses the journal; who checks the
# result. Those of units follow.
_PREPARING, _PRESENT, _WRITING, _CHECKING, _FIRST_UNIT = range(5)


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the journal."""

    unit: str
    report: dict[str, int | float]  # whole numbers stay whole


class Work:
    """A process at the work in its directory, OUT.partial, until `close`."""

    def __init__(
        self, directory: Path, identity: dict[str, str], resume: ResumeMode = "auto", *, alone: bool = False
    ) -> None:
        """Take part in the work in `directory` if it is the same, or start a new one.

        Others wait for `prepared`. UsageError if the directory holds different work (`auto`, `required`), no
        work (`required`) or other files; ModelUnusable for damaged work. `never` deletes the work that is
        there. alone: allow no other process; with it, and with `never`, UsageError if another one is there.
        """
        self.directory = directory
        self.folder = directory / WORK_FOLDER  # for temporary files
        check_resume(directory, resume)
        check_empty(directory, unless=has_work)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._locks = ByteLocks(self.folder / _LOCK)
        self._identity_path = self.folder / IDENTITY_FILE
        self._journal_path = self.folder / _JOURNAL
        self.done: dict[str, dict[str, float]] = {}
        self._news: list[str] = []
        self._num_lines = self._num_read = 0
        self._journal: int | None = None
        self._is_alone = alone
        try:
            self._locks.wait_for(_PREPARING)
            self._join(resume, alone=alone)
            if resume == "never":
                self._clear()
            self._begin(identity)
            if not alone:
                self._locks.take(_PRESENT, shared=True)
        except BaseException:
            self.close()
            raise

    def prepared(self) -> None:
        """Let others begin: the files that all write to are there."""
        self._locks.release(_PREPARING)

    def take(self, number: int) -> bool:
        """Take the unit of this number until `give_back`; False if another process has it."""
        return self._locks.take(_FIRST_UNIT + number)

    def give_back(self, number: int) -> None:
        """Let others take the unit, unless it is recorded."""
        self._locks.release(_FIRST_UNIT + number)

    def take_check(self) -> bool:
        """Be the process that checks and ends the work; False if another one is."""
        return self._locks.take(_CHECKING)

    @property
    def is_ended(self) -> bool:
        """Whether another process has given the directory its final name."""
        return not self._locks.is_in_place

    @property
    def has_others(self) -> bool:
        """Whether another process is at this work."""
        if self._is_alone:
            return False
        if self._locks.take(_PRESENT):
            self._locks.take(_PRESENT, shared=True)
            return False
        return True

    def record(self, unit: str, report: Mapping[str, float] | None = None) -> None:
        """Record a unit whose bytes are on the disk. UsageError if another process has recorded it."""
        assert self._journal is not None
        with self._locks.held(_WRITING):
            self._read_on()
            if unit in self.done:
                raise UsageError(
                    f"another process has made {unit} too, which was locked by this one",
                    f"locks in {self.folder} do not reach the other machine, or its connection was lost",
                    "mount that disk with locks, or let one process do the work",
                )
            try:
                line = _line(unit, report or {})
                while line:
                    line = line[os.write(self._journal, line) :]
            except BaseException:
                os.ftruncate(self._journal, self._num_read)
                raise
            self._num_read = os.fstat(self._journal).st_size
            self._num_lines += 1
            self.done[unit] = dict(report or {})
        os.fsync(self._journal)

    def hear(self) -> list[str]:
        """The units that others have recorded since the last call."""
        with self._locks.held(_WRITING):
            self._read_on()
        news, self._news = self._news, []
        return news

    def finish(self, out: Path) -> None:
        """Give the directory its final name, and delete the temporary files.

        UsageError if something has taken the name meanwhile; the work stays.
        """
        self._locks.wait_for(_PREPARING)  # who begins now finds all of the work or nothing
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
        """Delete the temporary files of a complete checkpoint, and release the locks.

        The identity goes last: a run that was killed here is known by it, and the same command goes on.
        """
        last = (_JOURNAL, PIN_FILE, _LOCK, IDENTITY_FILE)
        for path in self.folder.iterdir():
            if path.name not in last:
                _delete(path)
        for name in last:
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Release all locks; recorded units stay."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None
        self._locks.close()

    def _join(self, resume: ResumeMode, *, alone: bool) -> None:
        if self.is_ended:
            raise UsageError(
                f"the work in {self.directory} has just been completed by another process",
                "its directory got its final name while this process waited for it",
                "use the checkpoint that is there now",
            )
        if self._locks.take(_PRESENT, shared=resume != "never" and not alone):
            return
        never = parameter("resume", "never")
        why, hint = "it reads files of the hub that it deletes, or begins anew", "wait for it or stop it"
        if alone:
            why = "files of the hub are fetched one by one and deleted, so no two can share them"
            hint += "; to share the work, download the model first"
        elif resume == "never":
            why, hint = f"{never} would delete its work", f"{hint}; omit {never} to share its work"
        raise UsageError(f"another process is at work in {self.directory}", why, hint)

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
        is_new = not holds_files and not self._journal_path.exists()
        if is_new:
            _write_whole(self._identity_path, json.dumps(identity, indent=1).encode())
            # Never empty: a journal without a line has lost them.
            _write_whole(self._journal_path, _line(_BEGUN, {}))
            sync_names(self.directory)
            sync_names(self.directory.parent)
        else:
            self._check_identity(identity)
        # Of a complete checkpoint it is removed before the identity.
        if self._journal_path.exists() or not is_made(self.directory):
            self._open_journal()

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

    def _open_journal(self) -> None:
        try:
            self._journal = os.open(self._journal_path, os.O_RDWR | os.O_APPEND)
            with self._locks.held(_WRITING):
                self._read_on()
        except OSError as error:
            raise damaged_work(self._journal_path, error.strerror or str(error)) from error
        if self._num_lines == 0:
            raise damaged_work(self._journal_path, "it has no whole line, and the first is written with it")
        self._news.clear()

    def _read_on(self) -> None:
        """Read the lines behind those that were read. Their lock must be held."""
        assert self._journal is not None
        num_bytes = os.fstat(self._journal).st_size - self._num_read
        if num_bytes == 0:
            return
        *lines, rest = os.pread(self._journal, max(num_bytes, 0), self._num_read).split(b"\n")
        for line in lines:
            self._num_lines += 1
            try:
                entry = msgspec.json.decode(line, type=_Entry)
            except ValueError as error:
                raise damaged_work(self._journal_path, f"line {self._num_lines}: {error}") from error
            self.done[entry.unit] = dict(entry.report)
            self._news.append(entry.unit)
            self._num_read += len(line) + 1
        # A kill may leave half a line at the end; that unit is repeated.
        if rest:
            os.ftruncate(self._journal, self._num_read)


def begin_files(work: Work, files: CheckpointFiles) -> bool:
    """Create the files of the weights, or check those that an earlier run recorded; whether it created.

    DoesNotFit where the disk is too small; ModelUnusable for files of an earlier run that changed.
    """
    if FILES_UNIT in work.done:
        files.check()
        return False
    try:
        files.create()
        files.sync()
    except OSError as error:
        raise DoesNotFit(
            f"{files.total_bytes} bytes for the weights cannot be allocated in {work.directory}, "
            f"{shutil.disk_usage(work.directory).free} are free",
            error.strerror or str(error),
            "free that much on the disk, or name a directory on another disk",
        ) from error
    return True


def check_resume(directory: Path, resume: ResumeMode) -> None:
    """Raise UsageError where work is required and `directory` holds none."""
    if resume == "required" and not has_work(directory):
        raise UsageError(
            f"{directory} holds no work to resume",
            f"{parameter('resume', 'required')} was given",
            "omit it to start from the beginning",
        )


def _line(unit: str, report: Mapping[str, float]) -> bytes:
    return json.dumps({"unit": unit, "report": report}).encode() + b"\n"


def _write_whole(path: Path, content: bytes) -> None:
    with replaced(path) as new:
        new.write_bytes(content)


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


def tell_nobody(*_told: object) -> None:
    """Ignore what nobody asked to be told: the default of callbacks."""


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


def adapters_identity(sources: Sequence[AdapterSource], adapter: Adapter) -> str:
    """Names and scales of the adapters, and a hash of all that their sum adds."""
    names = ", ".join(f"{one.directory.resolve().name} times {one.scale:g}" for one in sources)
    return f"{names} ({adapter_digest(adapter)})"


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
