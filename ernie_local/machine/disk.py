"""Measures how fast a disk reads pages of experts, in bursts as decode does, and finds its kind.

Reads go past the system's page cache where the file system can.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from ernie_local.checkpoint.uncached_file import ALIGNMENT, UncachedFile, drop_cached
from ernie_local.errors import DoesNotFit
from ernie_local.kernels.memory import empty_bytes
from ernie_local.machine.compute import Clock
from ernie_local.planner.profile import Measurement
from ernie_local.sizes import MIB, format_bytes

PAGE_BYTES = 6 * MIB  # a text expert of the published model in w4
# Pages that a layer of the published model misses when half of its experts are in memory.
PAGES_A_BURST = 3
_IN_FLIGHT = 4
# Between two bursts the runtime computes, and the disk is idle.
_PAUSE_SECONDS = 0.002
_LEAST_BURSTS = 4
_FILE_BYTES = 192 * MIB
StorageKind = Literal["network", "memory", "rotating", "solid", "unknown"]
# Of the last three are Windows' disks in WSL: every read goes through a protocol between the two.
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "fuse.ceph"),
    *("9p", "drvfs", "virtiofs"),
}
_MEMORY = {"tmpfs", "ramfs", "rootfs"}


@dataclass(frozen=True, slots=True)
class Storage:
    """What a path lies on. file_system: as the system calls it, None where it does not say."""

    kind: StorageKind
    file_system: str | None


def find_storage(
    path: Path, partitions: Sequence[Any] | None = None, devices: Path = Path("/sys/dev/block")
) -> Storage:
    """What the file or folder `path`, which exists, lies on. partitions: as psutil lists them."""
    if partitions is None:
        try:
            partitions = psutil.disk_partitions(all=True)
        except OSError:  # without /proc
            partitions = ()
    file_system = _file_system(path.resolve(), partitions)
    if file_system in _NETWORK:
        return Storage("network", file_system)
    if file_system in _MEMORY:
        return Storage("memory", file_system)
    if not hasattr(os, "major"):  # Windows
        return Storage("unknown", file_system)
    number = path.stat().st_dev
    return Storage(_device_kind(devices / f"{os.major(number)}:{os.minor(number)}"), file_system)


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Bytes a second in bursts of pages. is_direct: whether reads went past the system's cache."""

    speed: Measurement
    page_bytes: int
    is_direct: bool


def measure_disk(
    path: Path,
    page_bytes: int,
    seconds: float,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> DiskSpeed:
    """Read random pages of the file for about `seconds`; it has to hold a burst of them.

    page_bytes: rounded up to a multiple of 4096. ModelUnusable for a file that cannot be read.
    """
    page_bytes = -(-page_bytes // ALIGNMENT) * ALIGNMENT
    with ThreadPoolExecutor(_IN_FLIGHT) as readers:
        read_all, pause = readers.map, partial(sleep, _PAUSE_SECONDS)
        return _measure_bursts(path, page_bytes, PAGES_A_BURST, seconds, clock, read_all, pause)


def measure_small_reads(path: Path, seconds: float, clock: Clock = time.perf_counter) -> Measurement:
    """Bytes a second of single reads of 4 KiB, one after the other, for comparison with pages."""
    return _measure_bursts(path, ALIGNMENT, 1, seconds, clock).speed


def _measure_bursts(
    path: Path,
    num_bytes: int,
    at_once: int,
    seconds: float,
    clock: Clock,
    read_all: Callable[..., Iterator[None]] = map,
    pause: Callable[[], None] = lambda: None,
) -> DiskSpeed:
    """Random reads of num_bytes, so many at once by `read_all`, with a pause behind them."""
    num_places = path.stat().st_size // num_bytes
    assert num_places >= at_once, (path, num_places)
    with path.open("rb") as cached:  # the system's cache would be measured instead of the disk
        drop_cached(cached.fileno(), 0, 0)
    memory = empty_bytes(at_once * num_bytes + ALIGNMENT)
    aligned = memory[-memory.data_ptr() % ALIGNMENT :]  # where there are no huge pages
    buffers = [one.numpy().data for one in aligned[: at_once * num_bytes].split(num_bytes)]
    order = random.Random(0)
    rates: list[float] = []
    begin = clock()
    with closing(UncachedFile(path)) as file:
        while len(rates) < _LEAST_BURSTS or clock() - begin < seconds:
            offsets = [num_bytes * place for place in order.sample(range(num_places), at_once)]
            start = clock()
            list(read_all(file.read, offsets, buffers))
            rates.append(at_once * num_bytes / (clock() - start))
            pause()
        return DiskSpeed(Measurement.of(rates), num_bytes, file.is_direct)


def holds_pages(path: Path, page_bytes: int) -> bool:
    """Whether the file is large enough that its pages are not all read again and again."""
    return path.stat().st_size >= max(_FILE_BYTES, 8 * PAGES_A_BURST * page_bytes)


@contextmanager
def temporary_file(folder: Path, num_bytes: int = _FILE_BYTES) -> Iterator[Path]:
    """A file of random bytes, written through to the disk, deleted behind. DoesNotFit where that fails."""
    path: Path | None = None
    piece = torch.randint(0, 256, (8 * MIB,), dtype=torch.uint8).numpy().data
    try:
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".ernie-local-disk.", delete=False) as file:
                path = Path(file.name)
                for start in range(0, num_bytes, len(piece)):
                    file.write(piece[: num_bytes - start])
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DoesNotFit(
                f"a file of {format_bytes(num_bytes)} cannot be written to {folder}",
                error.strerror or str(error),
                "free some of that disk, or set TMPDIR to a folder on another one",
            ) from error
        yield path
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _file_system(path: Path, partitions: Sequence[Any]) -> str | None:
    """Of the mount with the longest path above; of two at one place the later one is on top."""
    above = [
        (len(Path(one.mountpoint).parts), one.fstype)
        for one in partitions
        if path.is_relative_to(one.mountpoint)
    ]
    return max(reversed(above), key=lambda mount: mount[0], default=(0, None))[1]


def _device_kind(device: Path) -> StorageKind:
    """By the flag of the disk, which of a partition is its parent's."""
    for queue in (device / "queue", device / ".." / "queue"):
        with suppress(OSError):
            flag = (queue / "rotational").read_text(encoding="ascii").strip()
            return "rotating" if flag == "1" else "solid"
    return "unknown"
