"""Finds the control groups of Linux, of either version, that limit this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

SYSTEM_ROOT = Path("/")
_USUAL_PLACE = "/sys/fs/cgroup"


class ControlGroup(NamedTuple):
    """The folder of one group, and whether it is of version 2."""

    folder: Path
    is_v2: bool

    def numbers(self, name: str) -> list[int | None]:
        """What a file of this group holds; None for what is no number ("max", -1)."""
        words = read_small_file(self.folder / name).split()
        return [int(word) if word.isdecimal() else None for word in words]

    def number(self, name: str) -> int | None:
        """The first of `numbers`; None where there is none."""
        return next(iter(self.numbers(name)), None)


class _Mount(NamedTuple):
    """A mounted hierarchy. controllers: of version 1; None for version 2. top: the group at its folder."""

    folder: Path
    controllers: frozenset[str] | None
    top: PurePosixPath


def control_groups(controller: str, root: Path = SYSTEM_ROOT) -> Iterator[ControlGroup]:
    """The groups that may limit this process by `controller`: its own ones, and all above them.

    None where this is no Linux. root: the folder that holds proc and sys.
    """
    own_paths = dict(_own_paths(root))
    for mount in _mounts(controller, root):
        if mount.controllers is not None and controller not in mount.controllers:
            continue
        own = own_paths.get("" if mount.controllers is None else controller, mount.top)
        # A container sees a part of the hierarchy, and may be told of groups outside of it.
        is_seen = own.is_relative_to(mount.top) and ".." not in own.parts
        folder = mount.folder / own.relative_to(mount.top) if is_seen else mount.folder
        for one in (folder, *folder.parents):
            yield ControlGroup(one, mount.controllers is None)
            if one == mount.folder:
                break


def read_small_file(path: Path) -> str:
    """The text of a small file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _own_paths(root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """The group of this process by controller; "" is that of version 2."""
    for line in read_small_file(root / "proc/self/cgroup").splitlines():
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        for name in names.split(","):
            yield name, PurePosixPath(path or "/")


def _mounts(controller: str, root: Path) -> list[_Mount]:
    """All hierarchies, by the table of mounts; without one, where they usually are."""
    found: list[_Mount] = []
    for line in read_small_file(root / "proc/self/mountinfo").splitlines():
        places, _, kinds = line.partition(" - ")
        place, kind = places.split(), kinds.split()
        if len(place) > 4 and kind and kind[0] in ("cgroup", "cgroup2"):
            controllers = None if kind[0] == "cgroup2" else frozenset(kind[-1].split(","))
            found.append(_Mount(root / place[4].lstrip("/"), controllers, PurePosixPath(place[3])))
    if found:
        return found
    usual = root / _USUAL_PLACE.lstrip("/")
    top = PurePosixPath("/")
    return [_Mount(usual, None, top), _Mount(usual / controller, frozenset([controller]), top)]
