"""Makes folders that hold proc and sys as a container or a machine would show them."""

from __future__ import annotations

from pathlib import Path


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Write each text to its path below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


def mounted(kind: str, folder: str, options: str, top: str = "/") -> str:
    """A line of proc/self/mountinfo."""
    return f"35 31 0:32 {top} {folder} rw,relatime shared:9 - {kind} {kind} {options}"


def v2_tree(root: Path, own: str, files: dict[str, str], top: str = "/") -> Path:
    """The second version at its usual place; own: the group of this process; files: below the mount."""
    return write_tree(
        root,
        {
            "proc/self/cgroup": f"0::{own}",
            "proc/self/mountinfo": mounted("cgroup2", "/sys/fs/cgroup", "rw", top),
        }
        | {f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    )


def v1_tree(root: Path, own: str, controllers: str, files: dict[str, str], top: str = "/") -> Path:
    """The first version, mounted for these controllers (joined by commas)."""
    place = f"/sys/fs/cgroup/{controllers}"
    return write_tree(
        root,
        {
            "proc/self/cgroup": f"4:{controllers}:{own}\n1:name=systemd:/\n0::/",
            "proc/self/mountinfo": mounted("tmpfs", "/sys/fs/cgroup", "rw")
            + "\n"
            + mounted("cgroup", place, f"rw,{controllers}", top)
            + "\n"
            + mounted("cgroup2", "/sys/fs/cgroup/unified", "rw"),
        }
        | {f"{place[1:]}/{name}": text for name, text in files.items()},
    )
