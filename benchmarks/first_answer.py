"""Seconds from a cold shell to the first answer about an invoice, to `--help`, and to an import.

    python benchmarks/first_answer.py --image examples/invoice.png

Each figure is the median of several fresh processes on two cores. `import torch` in a process of its own
stands beside them: it is the floor that no program on torch gets under.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PYTHON = sys.executable
COMMAND = str(Path(PYTHON).parent / "ernie-local")


def seconds(command: list[str], cores: set[int], repeats: int) -> float:
    """Median wall time of `command`, which must exit with 0."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--image", default="examples/invoice.png")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    question = ["-p", "What is the total?", "--image", arguments.image]
    commands = {
        "first answer (goal 4.0)": [COMMAND, "chat", "nano", *question],
        "--help (goal 0.3)": [COMMAND, "--help"],
        "chat --help": [COMMAND, "chat", "--help"],
        "import ernie_local": [PYTHON, "-c", "import ernie_local"],
        "import torch (floor)": [PYTHON, "-c", "import torch"],
    }
    results = {
        name: round(seconds(command, cores, arguments.repeats), 3) for name, command in commands.items()
    }
    for name, value in results.items():
        print(f"{name:26} {value:7.3f} s")
    print(
        json.dumps(
            {"seconds": results, "cores": len(cores), "machine": platform.processor() or platform.machine()}
        )
    )


if __name__ == "__main__":
    main()
