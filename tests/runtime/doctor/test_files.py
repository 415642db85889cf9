"""The doctor's checks of disks, a model's files, the stored profile and the battery."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ernie_local.checkpoint.hub import resolve_model
from ernie_local.doctor import CHECKS, Diagnosis, Subject
from ernie_local.doctor.check import WeightFiles
from ernie_local.machine.disk import DiskSpeed, Storage, measure_disk
from ernie_local.machine.hardware import find_hardware
from ernie_local.planner.profile import MachineProfile, Measurement, write_profile
from ernie_local.planner.rates import Rates
from tests.runtime.doctor.looking import look


def in_folder(folder: Path) -> Subject:
    return Subject(None, folder, folder / "machine.json")


def check_model(model: str) -> tuple[Diagnosis, list[Path]]:
    subject = Subject(model, Path(), Path())
    found = CHECKS["checkpoint"](subject)
    assert found is not None
    there = subject.model_files
    return found, there.paths if isinstance(there, WeightFiles) else []


def check_stored(path: Path) -> tuple[MachineProfile | None, Diagnosis]:
    subject = Subject(None, Path(), path)
    found = CHECKS["profile"](subject)
    assert found is not None
    return subject.own_profile, found


# disk


def test_a_file_of_our_own_is_timed_and_gone_afterwards(tmp_path: Path) -> None:
    found = look("disk", in_folder(tmp_path))
    assert found.facts["of_model"] is False
    assert found.facts["bytes_per_second"] > 0  # type: ignore[operator]
    assert found.facts["page_bytes"] == 6 << 20
    assert list(tmp_path.iterdir()) == []


def test_the_largest_file_of_the_model_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Path] = []

    def measure(path: Path, page_bytes: int, seconds: float) -> DiskSpeed:
        timed.append(path)
        return measure_disk(path, page_bytes, 0.0)

    monkeypatch.setattr("ernie_local.machine.disk.measure_disk", measure)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    with large.open("wb") as file:
        file.truncate(64 << 20)
    assert (
        look("disk", in_folder(tmp_path), model_files=WeightFiles([small, large], 2, 2)).facts["of_model"]
        is True
    )
    assert timed == [large]
    assert (
        look("disk", in_folder(tmp_path), model_files=WeightFiles([small], 1, 1)).facts["of_model"] is False
    )


@pytest.mark.parametrize(
    ("kind", "speed", "free", "fix"),
    [
        ("solid", 0.5e9, 2 << 30, None),
        ("rotating", 2e9, 2 << 30, None),  # as virtual disks say
        ("solid", 0.49e9, 2 << 30, "a faster disk"),
        ("rotating", 0.2e9, 2 << 30, "a solid-state disk of this machine"),
        ("network", 0.1e9, 2 << 30, "a solid-state disk of this machine"),
        ("solid", 2e9, (2 << 30) - 1, "free some space"),
    ],
)
def test_what_a_disk_has_to_give(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any, speed: float, free: int, fix: str | None
) -> None:
    measurement = Measurement(speed, speed, speed, 4)
    measured = DiskSpeed(measurement, 4096, is_direct=True)
    monkeypatch.setattr("ernie_local.machine.disk.find_storage", lambda path: Storage(kind, "ext4"))
    monkeypatch.setattr("ernie_local.machine.disk.temporary_file", lambda *_: nullcontext(tmp_path))
    monkeypatch.setattr("ernie_local.machine.disk.measure_disk", lambda *_: measured)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    found = look("disk", in_folder(tmp_path))
    assert found.verdict == ("ok" if fix is None else "slow")
    assert (found.fix is None) if fix is None else fix in (found.fix or "")


def test_a_folder_that_cannot_be_written_to_is_slow_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    found = look("disk", in_folder(tmp_path))
    assert found.verdict == "slow"
    assert "No space left on device" in found.text
    assert found.facts["bytes_per_second"] is None


# checkpoint


def test_no_model_no_finding() -> None:
    assert CHECKS["checkpoint"](Subject(None, Path(), Path())) is None


def test_a_whole_checkpoint() -> None:
    found, paths = check_model("nano")
    assert (found.verdict, found.facts["complete"], found.facts["files"]) == ("ok", True, 2)
    assert len(paths) == 2
    assert all(path.suffix == ".safetensors" for path in paths)


@pytest.fixture
def nano_copy(tmp_path: Path) -> Path:
    import shutil

    directory = tmp_path / "model"
    shutil.copytree(resolve_model("nano"), directory)
    return directory


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors", "tokenizer.model"])
def test_a_file_that_is_missing_fails(nano_copy: Path, name: str) -> None:
    (nano_copy / name).unlink()
    found, paths = check_model(str(nano_copy))
    assert (found.verdict, found.facts["complete"], paths) == ("fails", False, [])
    assert name.partition("-")[0].partition(".")[0] in found.text


def test_a_file_that_was_cut_off_fails(nano_copy: Path) -> None:
    path = nano_copy / "model-00001-of-00002.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    found, _ = check_model(str(nano_copy))
    assert found.verdict == "fails"


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie_local.checkpoint.hub.resolve_model", pytest.fail)
    found, paths = check_model("hf:baidu/model")
    assert (found.verdict, paths) == ("slow", [])


# profile


def stored(path: Path, **changes: Any) -> MachineProfile:
    rates = Rates(1e9, 1e10, 1e11, 1e-3, 1e-4)
    hardware = dataclasses.replace(find_hardware(), **changes)
    found = MachineProfile(hardware, "2026-11-27", rates, rates, {"x": Measurement(1.0, 0.5, 2.0, 3)})
    write_profile(path, found)
    return found


def test_a_profile_of_this_machine_is_given_on(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "machine.json"
    written = stored(path)
    read, found = check_stored(path)
    assert read == written
    assert (found.verdict, found.text) == ("ok", written.summary)
    assert found.facts == {"present": True, "date": "2026-11-27", "difference": None}


def test_a_profile_of_another_machine_is_named_and_not_used(tmp_path: Path) -> None:
    stored(tmp_path / "machine.json", cpu="Another 9000")
    read, found = check_stored(tmp_path / "machine.json")
    assert (read, found.verdict) == (None, "slow")
    assert "processor Another 9000, here " in found.text


def test_no_profile_is_ok_and_a_broken_one_is_slow(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    read, found = check_stored(path)
    assert (read, found.verdict, found.facts["present"]) == (None, "ok", False)
    path.write_text("{}")
    read, found = check_stored(path)
    assert (read, found.verdict, found.facts["present"]) == (None, "slow", True)
    assert "schema" in found.text
