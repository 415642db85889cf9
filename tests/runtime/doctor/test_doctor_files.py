"""The doctor's checks of disks, a model's files, the stored profile and the battery."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ernie_local.checkpoint.hub import resolve_model
from ernie_local.doctor import battery, checkpoint, disk, profile
from ernie_local.machine.disk import DiskSpeed, measure_disk
from ernie_local.machine.hardware import find_hardware
from ernie_local.machine.storage import Storage, find_storage
from ernie_local.planner.profile import MachineProfile, Measurement, write_profile
from ernie_local.planner.rates import Rates

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:20 / /proc rw - proc proc rw
30 22 0:40 / /home/me/net\\040work rw - nfs4 server:/x rw
31 22 0:41 / /tmp rw - tmpfs tmpfs rw
32 31 8:2 / /tmp/disk rw - xfs /dev/sdb1 rw
33 22 0:50 / /mnt/c rw - 9p drvfs rw
broken line
"""


# storage


@pytest.mark.parametrize(
    ("path", "kind", "file_system"),
    [
        ("/home/me/net work/model", "network", "nfs4"),
        ("/tmp/x", "memory", "tmpfs"),
        ("/tmp/disk/x", "unknown", "xfs"),
        ("/tmpfoo", "unknown", "ext4"),
        ("/mnt/c/model", "network", "9p"),
    ],
)
def test_the_longest_mount_above_a_path_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, kind: str, file_system: str
) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    monkeypatch.setattr(Path, "stat", lambda self: SimpleNamespace(st_dev=5))
    assert find_storage(Path(path), tmp_path / "mounts", tmp_path) == Storage(kind, file_system)  # type: ignore[arg-type]


@pytest.mark.parametrize(("flag", "kind"), [("1", "rotating"), ("0", "solid"), (None, "unknown")])
@pytest.mark.parametrize("is_partition", [True, False])
def test_a_partition_rotates_with_its_disk(
    tmp_path: Path, flag: str | None, kind: str, is_partition: bool
) -> None:
    import os

    number = tmp_path.stat().st_dev
    disk_folder = tmp_path / "sys" / "disk"
    device = disk_folder / "part" if is_partition else disk_folder
    device.mkdir(parents=True)
    (disk_folder / "queue").mkdir()
    if flag is not None:
        (disk_folder / "queue" / "rotational").write_text(flag + "\n")
    links = tmp_path / "links"
    links.mkdir()
    (links / f"{os.major(number)}:{os.minor(number)}").symlink_to(device)
    (tmp_path / "mounts").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert find_storage(tmp_path, tmp_path / "mounts", links).kind == kind


# disk


def test_a_file_of_our_own_is_timed_and_gone_afterwards(tmp_path: Path) -> None:
    found = disk.check([], tmp_path)
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
    assert disk.check([small, large], tmp_path).facts["of_model"] is True
    assert timed == [large]
    assert disk.check([small], tmp_path).facts["of_model"] is False


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
    monkeypatch.setattr(disk, "find_storage", lambda path: Storage(kind, "ext4"))
    monkeypatch.setattr(psutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(disk, "_measure", lambda place, is_model: (speed, {}))
    found = disk.check([], tmp_path)
    assert found.verdict == ("ok" if fix is None else "slow")
    assert (found.fix is None) if fix is None else fix in (found.fix or "")


def test_a_folder_that_cannot_be_written_to_is_slow_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    found = disk.check([], tmp_path)
    assert found.verdict == "slow"
    assert "No space left on device" in found.text
    assert found.facts["bytes_per_second"] is None


# checkpoint


def test_no_model_no_finding() -> None:
    assert checkpoint.check(None) == (None, [])


def test_a_whole_checkpoint() -> None:
    found, files = checkpoint.check("nano")
    assert found is not None
    assert (found.verdict, found.facts["complete"], found.facts["files"]) == ("ok", True, 2)
    assert len(files) == 2
    assert all(path.suffix == ".safetensors" for path in files)


@pytest.fixture
def nano_copy(tmp_path: Path) -> Path:
    import shutil

    directory = tmp_path / "model"
    shutil.copytree(resolve_model("nano"), directory)
    return directory


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors", "tokenizer.model"])
def test_a_file_that_is_missing_fails(nano_copy: Path, name: str) -> None:
    (nano_copy / name).unlink()
    found, files = checkpoint.check(str(nano_copy))
    assert found is not None
    assert (found.verdict, found.facts["complete"], files) == ("fails", False, [])
    assert name.partition("-")[0].partition(".")[0] in found.text


def test_a_file_that_was_cut_off_fails(nano_copy: Path) -> None:
    path = nano_copy / "model-00001-of-00002.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    found, _ = checkpoint.check(str(nano_copy))
    assert found is not None
    assert found.verdict == "fails"


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie_local.checkpoint.hub.resolve_model", pytest.fail)
    found, files = checkpoint.check("hf:baidu/model")
    assert found is not None
    assert (found.verdict, files) == ("slow", [])


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
    read, found = profile.check(path)
    assert read == written
    assert (found.verdict, found.text) == ("ok", written.summary)
    assert found.facts == {"present": True, "date": "2026-11-27", "difference": None}


def test_a_profile_of_another_machine_is_named_and_not_used(tmp_path: Path) -> None:
    stored(tmp_path / "machine.json", cpu="Another 9000")
    read, found = profile.check(tmp_path / "machine.json")
    assert (read, found.verdict) == (None, "slow")
    assert "processor Another 9000, here " in found.text


def test_no_profile_is_ok_and_a_broken_one_is_slow(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    read, found = profile.check(path)
    assert (read, found.verdict, found.facts["present"]) == (None, "ok", False)
    path.write_text("{}")
    read, found = profile.check(path)
    assert (read, found.verdict, found.facts["present"]) == (None, "slow", True)
    assert "schema" in found.text


# battery


@pytest.mark.parametrize(
    ("state", "verdict", "plugged"),
    [
        (None, "ok", None),
        (SimpleNamespace(percent=80.4, power_plugged=False), "slow", False),
        (SimpleNamespace(percent=80.4, power_plugged=True), "ok", True),
        (SimpleNamespace(percent=80.4, power_plugged=None), "ok", None),
    ],
)
def test_on_battery_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, state: Any, verdict: str, plugged: bool | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: state, raising=False)
    found = battery.check()
    assert (found.verdict, found.facts["power_plugged"]) == (verdict, plugged)
    assert found.facts["present"] == (state is not None)


def test_a_system_that_knows_no_batteries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert battery.check().verdict == "ok"
