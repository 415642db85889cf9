"""Runs a command in a memory cgroup of its own, page cache charged, from a cold page cache.

    python benchmarks/memory_limit.py 8GiB python benchmarks/paging.py MODEL --ram 8GiB

Prints the high-water mark and the kernel's kills on stderr. Needs root and a writable memory controller.
What another process has cached is charged to that one: so the cache is dropped first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ernie_local.sizes import parse_bytes

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limited:
    """How a command under a limit ended. peak_bytes: the group's high-water mark; None if unknown."""

    code: int
    stdout: str
    peak_bytes: int | None
    kills: int


def run_limited(command: list[str], limit_bytes: int, capture: bool = True) -> Limited:
    unified = (ROOT / "cgroup.controllers").exists()
    own = _own_group("" if unified else "memory")
    base = ROOT / own if unified else ROOT / "memory" / own
    limit, peak, events = (
        ("memory.max", "memory.peak", "memory.events")
        if unified
        else ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
    )
    group = base / f"limit.{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(limit_bytes))
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        done = subprocess.run(
            command, stdout=subprocess.PIPE if capture else None, text=True, check=False, preexec_fn=join
        )
        peak_bytes = int((group / peak).read_text()) if (group / peak).exists() else None
        counts = dict(line.split() for line in (group / events).read_text().splitlines())
        return Limited(done.returncode, done.stdout or "", peak_bytes, int(counts.get("oom_kill", 0)))
    finally:
        group.rmdir()


def _own_group(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.strip("/")
    raise SystemExit(f"no cgroup with the controller {controller or 'unified'}")


def main() -> None:
    limit, command = parse_bytes(sys.argv[1], "LIMIT"), sys.argv[2:]
    done = run_limited(command, limit, capture=False)
    print(f"limit {limit}, high-water {done.peak_bytes}, kills {done.kills}", file=sys.stderr)
    raise SystemExit(done.code)


if __name__ == "__main__":
    main()
