"""A work directory after kills and power losses: damage is told with what to do, and the end is finished."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ernie_local.config import QuantizationConfig
from ernie_local.errors import ModelUnusable, Stopped, UsageError
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe
from ernie_quant.tokens import RowFile
from ernie_quant.work import Work

IDENTITY = {"source": "a", "settings": "b"}
UNITS: dict[str, dict[str, float]] = {"files": {}, "expert 1.text.0": {"tokens": 3, "down_error": 0.5}}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A directory with work of two units, stopped."""
    work = Work(tmp_path / "model.partial", IDENTITY)
    for unit, report in UNITS.items():
        work.record(unit, report)
    work.close()
    (work.directory / "model.safetensors").write_bytes(b"weights")
    return work.directory


def resumed(directory: Path) -> dict[str, dict[str, float]]:
    work = Work(directory, IDENTITY)
    work.close()
    return {unit: report for unit, report in work.done.items() if unit in UNITS}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def other_json(path: Path) -> None:
    path.write_text("[1]\n")


def of_other_types(path: Path) -> None:
    path.write_text('{"unit": 5, "report": "none"}\n')


DAMAGES = [empty, tear, zero, other_json, of_other_types, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["identity.json", "journal.jsonl"])
def test_a_damaged_file_of_the_work_is_told_with_what_to_do(
    name: str, damage: Callable[[Path], None], begun: Path
) -> None:
    if name == "journal.jsonl" and damage is tear:
        return  # half a line at the end is what a kill leaves
    damage(begun / "work" / name)
    with pytest.raises(ModelUnusable, match=rf"{name} is damaged[\s\S]*never"):
        resumed(begun)
    work = Work(begun, IDENTITY, "never")
    work.close()
    assert not work.done.keys() & UNITS.keys()
    assert [path.name for path in begun.iterdir()] == ["work"]


def test_a_damaged_line_before_others_is_told(begun: Path) -> None:
    journal = begun / "work" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], bytes(len(lines[1]) - 1), b"\n", *lines[2:]]))
    with pytest.raises(ModelUnusable, match=r"journal\.jsonl is damaged[\s\S]*line 2"):
        resumed(begun)


@pytest.mark.parametrize("end", [b'{"unit": "expert 1', bytes(600)])
def test_a_line_that_was_not_finished_is_dropped(end: bytes, begun: Path) -> None:
    journal = begun / "work" / "journal.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(before + end)
    assert resumed(begun) == UNITS
    assert journal.read_bytes() == before


def test_a_kill_before_the_journal_loses_nothing(tmp_path: Path) -> None:
    for left in ([], ["lock"], ["lock", "identity.json"], ["lock", "identity.json.new"]):
        directory = tmp_path / "-".join(["left", *left])
        (directory / "work").mkdir(parents=True)
        for name in left:
            (directory / "work" / name).touch()
        assert resumed(directory) == {}
        assert resumed(directory) == {}


@pytest.mark.parametrize("damage", [empty, zero, tear, Path.unlink])
def test_weights_that_are_not_those_of_the_work_are_told(
    damage: Callable[[Path], None], small_nano: Path, small_tables: QuantizationConfig, tmp_path: Path
) -> None:
    job = Job(small_nano, tmp_path / "model", small_tables, Recipe("rtn"), should_stop=lambda: True)
    with pytest.raises(Stopped):
        quantize_checkpoint(job)
    damage(job.partial / "model.safetensors")
    with pytest.raises(ModelUnusable, match=r"the weights in .*model\.safetensors"):
        quantize_checkpoint(job)
    with pytest.raises(Stopped, match="stopped after 1 of"):
        quantize_checkpoint(dataclasses.replace(job, resume="never"))


@pytest.mark.parametrize("damage", [empty, tear, Path.unlink])
def test_hidden_states_that_are_not_whole_are_told(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "states.3"
    RowFile(path, 5, 7, is_new=True).close()
    damage(path)
    with pytest.raises(ModelUnusable, match=r"states\.3 is damaged"):
        RowFile(path, 5, 7)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def counted(kind: str, monkeypatch: pytest.MonkeyPatch, left: Iterator[int]) -> None:
    """Let `Path.KIND` die when `left` is used up."""
    real = getattr(Path, kind)

    def die_or_do(*arguments: object, **options: object) -> object:
        if next(left, None) is None:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(Path, kind, die_or_do)


@pytest.fixture(scope="module")
def at_the_end(
    small_nano: Path, small_tables: QuantizationConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a checkpoint that is complete but for its name. Not to be written to."""
    folder = tmp_path_factory.mktemp("at_the_end")
    job = Job(small_nano, folder / "model", small_tables, Recipe("rtn"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "finish", lambda *_: None)
        quantize_checkpoint(job)
    (job.partial / "work" / "states.5").write_bytes(b"hidden states")
    (job.partial / "work" / "exact.5").write_bytes(b"hidden states")
    return folder


@pytest.mark.parametrize("num_steps", range(5))
def test_a_kill_after_the_last_rename_is_finished_by_the_same_command(
    num_steps: int, at_the_end: Path, small_nano: Path, small_tables: QuantizationConfig, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(at_the_end, tmp_path / "folder"))
    job = Job(small_nano, folder / "model", small_tables, Recipe("rtn"))
    job.partial.rename(job.out)
    work = Work(job.out, quantize_identity(job.out))
    with pytest.MonkeyPatch.context() as patch:
        left = iter(range(num_steps))
        counted("unlink", patch, left)
        with pytest.raises(Killed):
            work.remove()
    work.close()
    assert (job.out / "work").exists()
    checkpoint = {path.name for path in job.out.iterdir()} - {"work"}
    with pytest.raises(UsageError, match="holds"):
        quantize_checkpoint(dataclasses.replace(job, recipe=Recipe("clip")))
    with pytest.raises(UsageError, match="holds"):
        quantize_checkpoint(dataclasses.replace(job, resume="never"))
    told: list[str] = []
    quantize_checkpoint(dataclasses.replace(job, on_note=told.append))
    assert "was complete" in told[-1]
    assert {path.name for path in job.out.iterdir()} == checkpoint
    assert sorted(path.name for path in folder.iterdir()) == ["model"]
    with pytest.raises(UsageError, match="holds"):
        quantize_checkpoint(job)


def quantize_identity(out: Path) -> dict[str, str]:
    import json

    identity: dict[str, str] = json.loads((out / "work" / "identity.json").read_text())
    return identity


def test_what_is_recorded_is_on_the_disk_before_the_name_is_given(
    small_nano: Path, small_tables: QuantizationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No small file of the checkpoint gets its name before its content is on the disk."""
    synced: set[str] = set()
    real = os.fsync

    def sync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name.removesuffix(".new"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    job = Job(small_nano, tmp_path / "model", small_tables, Recipe("rtn"))
    quantize_checkpoint(job)
    written = {path.name for path in job.out.iterdir()}
    assert written | {"identity.json", "journal.jsonl", "model.partial", tmp_path.name} <= synced
