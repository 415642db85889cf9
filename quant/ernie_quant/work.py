"""Keeps a quantizing run resumable: OUT.partial with its lock, identity and journal of finished units.

A unit is a tensor's name, `sequence NUMBER`, `expert LAYER.BANK.ID` or `layer ID`. It enters the journal
after its bytes are on the disk, so a run may be killed at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Literal

import torch

import ernie_local
from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import Bank
from ernie_local.errors import Stopped, UsageError, parameter
from ernie_local.files import replaced
from ernie_quant.foreign import FOREIGN_PACKAGES
from ernie_quant.recipe import Recipe

ResumeMode = Literal["auto", "required", "never"]
_FOLDER = "work"  # inside the directory; gone before it gets its final name


class Work:
    """`OUT.partial`, locked for this process until `close`."""

    def __init__(self, directory: Path, identity: dict[str, str], resume: ResumeMode = "auto") -> None:
        """Resume the work in `directory` if it is the same, or start a new one.

        UsageError if another process works there, if the directory holds different work (`auto`, `required`),
        no work (`required`) or other files. `never` deletes the work that is there.
        """
        self.directory = directory
        self.folder = directory / _FOLDER  # for temporary files
        is_there = self.folder.is_dir()
        if resume == "required" and not is_there:
            raise UsageError(
                f"{directory} holds no work to resume",
                f"{parameter('resume', 'required')} was given",
                "omit it to start from the beginning",
            )
        if not is_there:
            check_empty(directory)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        if is_there and resume == "never":
            self._clear()
        self._journal_path = self.folder / "journal.jsonl"
        self._check_identity(identity)
        self.done: dict[str, dict[str, float]] = self._read_journal()
        self._journal = self._journal_path.open("a", encoding="utf-8")

    def record(self, unit: str, report: Mapping[str, float] | None = None) -> None:
        """Record a unit whose bytes are on the disk."""
        self.done[unit] = dict(report or {})
        self._journal.write(json.dumps({"unit": unit, "report": self.done[unit]}) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def finish(self, out: Path) -> None:
        """Give the directory its final name, and delete the temporary files."""
        self._journal.close()
        if out.is_dir():  # empty, as checked before
            out.rmdir()
        # In this order: if killed in between, the checkpoint exists, with one folder too many.
        self.directory.rename(out)
        shutil.rmtree(out / _FOLDER)
        self._lock.close()

    def close(self) -> None:
        """Release the lock; recorded units stay."""
        self._journal.close()
        self._lock.close()

    def _take_lock(self) -> IO[str]:
        lock = (self.folder / "lock").open("a", encoding="utf-8")
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
            if path.name != "lock":
                path.unlink()

    def _check_identity(self, identity: dict[str, str]) -> None:
        path = self.folder / "identity.json"
        if not path.exists():
            with replaced(path) as new:
                new.write_text(json.dumps(identity, indent=1), encoding="utf-8")
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
        if differing:
            raise UsageError(
                f"{self.directory} holds other work: {', '.join(differing)} differ",
                "resuming would mix two checkpoints",
                f"use the settings of that work, or start again with {parameter('resume', 'never')}",
            )

    def _read_journal(self) -> dict[str, dict[str, float]]:
        done: dict[str, dict[str, float]] = {}
        kept = 0
        self._journal_path.touch()
        with self._journal_path.open("rb") as file:
            for line in file:
                # A kill may leave half a line at the end; that unit is repeated.
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
            "existing files are never overwritten",
            "name a new directory, or move its files away",
        )


OnUnit = Callable[[str, float, float], None]  # its name, the cost so far, the cost of all


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
        on_unit: OnUnit,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """costs: of every unit, in any measure."""
        self.work, self.files, self._costs = work, files, costs
        self.done = work.done  # the reports of units that this run or an earlier one finished
        self._on_unit, self._should_stop = on_unit, should_stop
        self._cost_of_all = sum(costs.values())
        self._cost_done = sum(costs.get(unit, 0.0) for unit in self.done)
        on_unit("", self._cost_done, self._cost_of_all)

    def tell(self, what: str) -> None:
        """Tell the caller what is done now besides units."""
        self._on_unit(what, self._cost_done, self._cost_of_all)

    def finish(self, unit: str, report: Mapping[str, float] | None = None) -> None:
        """Sync its bytes to the disk and record it. Stopped if the caller asks; recorded units stay."""
        self.files.sync()
        self.work.record(unit, report)
        self._cost_done += self._costs[unit]
        self._on_unit(unit, self._cost_done, self._cost_of_all)
        if self._should_stop is not None and self._should_stop():
            num_done = len(self.done.keys() & self._costs.keys())
            raise Stopped(
                f"stopped after {num_done} of {len(self._costs)} units, "
                f"{self._cost_done / self._cost_of_all:.0%} of the work",
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
        with path.open("rb") as file:
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
