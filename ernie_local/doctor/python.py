"""The check of Python, PyTorch, and the threads that both PyTorch and the kernels compute with."""

from __future__ import annotations

import os
import platform
import sys

from ernie_local.doctor.finding import Finding

NAME = "python"


def check() -> Finding:
    """Fails without PyTorch; slow with threads that leave processors idle or fight over them."""
    version, cpus = platform.python_version(), usable_cpus()
    facts = {"python": version, "torch": None, "threads": None, "usable_cpus": cpus}
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it loads is not there
        return Finding(
            NAME,
            "fails",
            f"Python {version}, but PyTorch cannot be imported: {error}",
            "pip install --force-reinstall torch",
            facts,
        )
    threads = torch.get_num_threads()
    facts |= {"torch": str(torch.__version__), "threads": threads}
    text = (
        f"Python {version}, PyTorch {torch.__version__}, {_count(threads, 'thread')} on {_count(cpus, 'CPU')}"
    )
    # By default torch takes one thread a core, which is half of the CPUs where each core counts as two.
    if 2 * threads < cpus:
        return Finding(
            NAME,
            "slow",
            text,
            f"unset OMP_NUM_THREADS, or set it to the cores you can spare of {cpus}",
            facts,
        )
    if threads > cpus:
        return Finding(NAME, "slow", text, f"OMP_NUM_THREADS={cpus}: more threads wait for each other", facts)
    return Finding(NAME, "ok", text, None, facts)


def usable_cpus() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
