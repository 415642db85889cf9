"""What this machine is: its processor, its GPUs by the driver's library, the disks that paths lie on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ernie_local.machine import hardware
from ernie_local.machine.disk import Storage, find_storage
from ernie_local.machine.hardware import GpuProcess, GpuStatus, installed_gpus

MOUNTS = [
    SimpleNamespace(mountpoint=place, fstype=kind)
    for place, kind in (
        ("/", "ext4"),
        ("/proc", "proc"),
        ("/home/me/net work", "nfs4"),
        ("/tmp", "tmpfs"),
        ("/tmp/disk", "xfs"),
        ("/mnt/c", "9p"),
    )
]


class NotTold(Exception):
    """What a stand-in for NVML raises."""


class FakeNvml:
    """NVML with GPUs that a test makes up; what it was not given raises, as with an old driver."""

    NVMLError = NotTold

    def __init__(self, *gpus: dict[str, Any], driver: str | None = "550.54.15") -> None:
        self.gpus, self.driver, self.is_open = gpus, driver, False

    def nvmlInit(self) -> None:  # noqa: N802
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self.gpus[index]

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        if self.driver is None:
            raise NotTold
        return self.driver

    def nvmlSystemGetProcessName(self, pid: int) -> str:  # noqa: N802
        names = {1: "/usr/bin/python3", 2: "C:\\Program Files\\Game, the\\game.exe", 3: "/usr/lib/chrome"}
        if pid not in names:
            raise NotTold
        return names[pid]

    def __getattr__(self, name: str) -> Any:
        def ask(device: dict[str, Any]) -> Any:
            assert self.is_open
            if name not in device:
                raise NotTold
            return device[name]

        return ask


def running(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_gpus_and_who_holds_their_memory_are_read() -> None:
    nvml = FakeNvml(
        {
            "nvmlDeviceGetName": "NVIDIA GeForce RTX 3060",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=12288 << 20, free=10923 << 20),
            "nvmlDeviceGetCudaComputeCapability": [8, 6],
            "nvmlDeviceGetMaxPcieLinkGeneration": 4,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetCurrPcieLinkWidth": 8,
            "nvmlDeviceGetComputeRunningProcesses": [running(1, 1200 << 20), running(2, None), running(9, 1)],
        },
        {"nvmlDeviceGetName": "Quadro P2000", "nvmlDeviceGetCurrentDriverModel": 1},
    )
    first, second = installed_gpus(nvml) or ()
    assert first == GpuStatus(
        name="NVIDIA GeForce RTX 3060",
        driver_version="550.54.15",
        compute_capability=(8, 6),
        total_bytes=12288 << 20,
        free_bytes=10923 << 20,
        link_generation=4,
        link_width=8,
        link_width_most=16,
        driver_model=None,
        processes=(
            GpuProcess("python3", 1200 << 20),
            GpuProcess("game.exe", None),
            GpuProcess("unknown", 1),
        ),
    )
    assert (second.name, second.driver_model, second.total_bytes) == ("Quadro P2000", "TCC", None)
    assert not nvml.is_open


def test_what_the_driver_does_not_tell_is_none() -> None:
    (found,) = installed_gpus(FakeNvml({}, driver=None)) or ()
    assert found == GpuStatus("unknown GPU", None, None, None, None, None, None, None, None, ())


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_a_driver_that_does_not_answer_means_no_gpus(call: str) -> None:
    def refuse(*arguments: Any) -> Any:
        raise NotTold

    nvml = FakeNvml({})
    setattr(nvml, call, refuse)
    assert installed_gpus(nvml) is None
    assert not nvml.is_open


def test_a_driver_may_name_no_gpus() -> None:
    assert installed_gpus(FakeNvml()) == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Intel(R)  Core(TM) i5 \nmodel name : other\n",
            "Intel(R) Core(TM) i5",
        ),
        ("model name\t:\nmodel name\t: B\x1b[1m\n", "B [1m"),
    ],
)
def test_a_processor_has_a_name(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert hardware.processor_name(tmp_path / "cpuinfo") == name


def test_a_processor_without_a_name_has_a_kind(tmp_path: Path) -> None:
    assert hardware.processor_name(tmp_path / "missing")


def test_this_machine_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = hardware.find_hardware()
    assert found.difference(hardware.find_hardware()) is None
    assert found.cores >= 1
    assert found.ram_bytes > 1 << 20
    monkeypatch.setattr(hardware, "installed_gpus", lambda: None)
    assert hardware.find_hardware().gpu is None


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
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    monkeypatch.setattr(Path, "stat", lambda self: SimpleNamespace(st_dev=5))
    assert find_storage(Path(path), MOUNTS, tmp_path) == Storage(kind, file_system)  # type: ignore[arg-type]


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
    assert find_storage(tmp_path, MOUNTS[:1], links).kind == kind
