"""What kind of disk a path lies on, as far as the system tells: its file system, network, memory, rotating.

Reads /proc and /sys and measures nothing; where there are none, nothing is known.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

StorageKind = Literal["network", "memory", "rotating", "solid", "unknown"]
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "fuse.ceph"),
}
_MEMORY = {"tmpfs", "ramfs", "rootfs"}
# WSL shows Windows' disks so: every read goes through a protocol between the two.
_WINDOWS_SHARE = {"9p", "drvfs", "virtiofs"}


@dataclass(frozen=True, slots=True)
class Storage:
    """file_system: as the system calls it, None where it does not say."""

    kind: StorageKind
    file_system: str | None


def find_storage(
    path: Path, mounts: Path = Path("/proc/self/mountinfo"), devices: Path = Path("/sys/dev/block")
) -> Storage:
    """Of the file or folder `path`, which exists."""
    file_system = _file_system(path.resolve(), mounts)
    if file_system in _NETWORK or file_system in _WINDOWS_SHARE:
        return Storage("network", file_system)
    if file_system in _MEMORY:
        return Storage("memory", file_system)
    number = path.stat().st_dev
    rotates = _rotates(devices / f"{os.major(number)}:{os.minor(number)}") if hasattr(os, "major") else None
    kind: StorageKind = "unknown" if rotates is None else "rotating" if rotates else "solid"
    return Storage(kind, file_system)


def _file_system(path: Path, mounts: Path) -> str | None:
    """Of the mount with the longest path above; of two at one place the later one is on top."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    best: tuple[int, str] | None = None
    for line in lines:
        fields, _, behind = line.partition(" - ")
        place = fields.split()[4:5]
        if not place or not behind:
            continue
        folder = Path(place[0].replace("\\040", " "))
        if path.is_relative_to(folder) and (best is None or len(folder.parts) >= best[0]):
            best = (len(folder.parts), behind.split()[0])
    return None if best is None else best[1]


def _rotates(device: Path) -> bool | None:
    """By the flag of the disk, which of a partition is its parent's."""
    for queue in (device / "queue", device / ".." / "queue"):
        try:
            return (queue / "rotational").read_text(encoding="ascii").strip() == "1"
        except OSError:
            continue
    return None
