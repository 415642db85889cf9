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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from ernie_local.checkpoint.uncached_file import ALIGNMENT, UncachedFile, drop_cached
from ernie_local.errors import DoesNotFit
from ernie_local.kernels.memory import empty_bytes
from ernie_local.machine.timing import Clock
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
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "fuse.ceph"),
}
_MEMORY = {"tmpfs", "ramfs", "rootfs"}
# How WSL shows Windows' disks: every read goes through a protocol between the two.
_WINDOWS_SHARE = {"9p", "drvfs", "virtiofs"}


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
        partitions = psutil.disk_partitions(all=True)
    file_system = _file_system(path.resolve(), partitions)
    if file_system in _NETWORK or file_system in _WINDOWS_SHARE:
        return Storage("network", file_system)
    if file_system in _MEMORY:
        return Storage("memory", file_system)
    number = path.stat().st_dev
    rotates = _rotates(devices / f"{os.major(number)}:{os.minor(number)}") if hasattr(os, "major") else None
    kind: StorageKind = "unknown" if rotates is None else "rotating" if rotates else "solid"
    return Storage(kind, file_system)


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
    num_pages = path.stat().st_size // page_bytes
    assert num_pages >= PAGES_A_BURST, (path, num_pages)
    _forget(path)
    file = UncachedFile(path)
    is_direct = file.is_direct
    memory = empty_bytes(PAGES_A_BURST * page_bytes + ALIGNMENT)
    aligned = memory[-memory.data_ptr() % ALIGNMENT :]  # where there are no huge pages
    places = [aligned[start : start + page_bytes].numpy().data for start in _starts(page_bytes)]
    order = random.Random(0)
    rates: list[float] = []
    begin = clock()
    try:
        with ThreadPoolExecutor(_IN_FLIGHT) as readers:
            while len(rates) < _LEAST_BURSTS or clock() - begin < seconds:
                pages = order.sample(range(num_pages), PAGES_A_BURST)
                start = clock()
                reads = [
                    readers.submit(file.read, page * page_bytes, place)
                    for page, place in zip(pages, places, strict=True)
                ]
                for read in reads:
                    read.result()
                rates.append(PAGES_A_BURST * page_bytes / (clock() - start))
                sleep(_PAUSE_SECONDS)
    finally:
        file.close()
    return DiskSpeed(Measurement.of(rates), page_bytes, is_direct)


def measure_small_reads(path: Path, seconds: float, clock: Clock = time.perf_counter) -> Measurement:
    """Bytes a second of single reads of 4 KiB, one after the other, for comparison with pages."""
    num_blocks = path.stat().st_size // ALIGNMENT
    _forget(path)
    file, order = UncachedFile(path), random.Random(0)
    rates: list[float] = []
    memory = torch.empty(2 * ALIGNMENT, dtype=torch.uint8)
    block = memory[-memory.data_ptr() % ALIGNMENT :][:ALIGNMENT].numpy().data
    begin = clock()
    try:
        while len(rates) < _LEAST_BURSTS or clock() - begin < seconds:
            start = clock()
            file.read(order.randrange(num_blocks) * ALIGNMENT, block)
            rates.append(ALIGNMENT / (clock() - start))
    finally:
        file.close()
    return Measurement.of(rates)


def holds_pages(path: Path, page_bytes: int) -> bool:
    """Whether the file is large enough that its pages are not all read again and again."""
    return path.stat().st_size >= max(_FILE_BYTES, 8 * PAGES_A_BURST * page_bytes)


@contextmanager
def temporary_file(folder: Path, num_bytes: int = _FILE_BYTES) -> Iterator[Path]:
    """A file of random bytes in `folder`, written through to the disk, and deleted afterwards.

    DoesNotFit where it cannot be written.
    """
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


def _starts(page_bytes: int) -> range:
    return range(0, PAGES_A_BURST * page_bytes, page_bytes)


def _forget(path: Path) -> None:
    """Drop the file from the system's cache, which would be measured instead of the disk."""
    with path.open("rb") as file:
        drop_cached(file.fileno(), 0, 0)


def _file_system(path: Path, partitions: Sequence[Any]) -> str | None:
    """Of the mount with the longest path above; of two at one place the later one is on top."""
    best: tuple[int, str] | None = None
    for partition in partitions:
        folder = Path(partition.mountpoint)
        if path.is_relative_to(folder) and (best is None or len(folder.parts) >= best[0]):
            best = (len(folder.parts), partition.fstype)
    return None if best is None else best[1]


def _rotates(device: Path) -> bool | None:
    """By the flag of the disk, which of a partition is its parent's."""
    for queue in (device / "queue", device / ".." / "queue"):
        try:
            return (queue / "rotational").read_text(encoding="ascii").strip() == "1"
        except OSError:
            continue
    return None
