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


def hybrid_files(performance: int, efficiency: int, told_by: str = "counters") -> dict[str, str]:
    """Files of a processor whose performance cores, each of two logical processors, come first.

    told_by: Intel's counters, or the name of a file of each logical processor, as on ARM.
    """
    fast, num_all = 2 * performance, 2 * performance + efficiency
    processors = "sys/devices/system/cpu"
    files = {
        f"{processors}/cpu{cpu}/topology/core_cpus_list": f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"
        if cpu < fast
        else f"{cpu}"
        for cpu in range(num_all)
    }
    if told_by == "counters":
        return files | {
            "sys/devices/cpu_core/cpus": f"0-{fast - 1}",
            "sys/devices/cpu_atom/cpus": f"{fast}-{num_all - 1}",
        }
    # Of performance cores, the favoured first one is a little faster.
    numbers = {cpu: 1024 if cpu == 0 else 1000 if cpu < fast else 446 for cpu in range(num_all)}
    return files | {f"{processors}/cpu{cpu}/{told_by}": str(number) for cpu, number in numbers.items()}


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
