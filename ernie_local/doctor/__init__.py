"""Checks what this machine offers to ernie-local, one thing after the other, each with a verdict.

A check changes nothing for good, and imports torch only when it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from ernie_local.doctor import cpu, gpu, system
from ernie_local.doctor.check import Diagnosis, Subject, Verdict, worst_verdict

__all__ = ["CHECKS", "Diagnosis", "Subject", "Verdict", "examine", "worst_verdict"]

# In the order of the report. A check gives None where there is nothing to check.
CHECKS: Mapping[str, Callable[[Subject], Diagnosis | None]] = {
    "python": system.check_python,
    "memory": system.check_main_memory,
    "kernels": cpu.check_native_module,
    "cpu": cpu.check_instruction_set,
    "self-test": cpu.check_results,
    "cuda": gpu.check_cuda,
    "gpu": gpu.check_gpus,
    "triton": gpu.check_triton,
    "nf4": gpu.check_nf4,
    "link": gpu.check_link,
    "pinned": gpu.check_locked_memory,
    "system": system.check_system,
    "battery": system.check_battery,
    "checkpoint": system.check_checkpoint,
    "disk": system.check_disk,
    "profile": system.check_profile,
}
_WITHOUT_TORCH = ("python", "memory", "kernels")


def examine(subject: Subject) -> Iterator[Diagnosis]:
    """Run every check in order, each as the last one is told; without PyTorch, only those that need none."""
    lacks_torch = False
    for name, check in CHECKS.items():
        if lacks_torch and name not in _WITHOUT_TORCH:
            return
        found = check(subject)
        if found is not None:
            lacks_torch = lacks_torch or (name == "python" and found.verdict == "fails")
            yield dataclasses.replace(found, name=name)
