"""Checks what this machine offers to ernie-local, one thing after the other, each with a verdict.

A check changes nothing for good, and imports torch only when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from ernie_local.doctor import cpu, cuda, files, gpu, system
from ernie_local.doctor.check import Check, Diagnosis, Examination, Subject, Verdict, worst_verdict

__all__ = ["CHECKS", "Check", "Diagnosis", "Examination", "Subject", "Verdict", "examine", "worst_verdict"]

CHECKS: tuple[Check, ...] = (
    system.PYTHON,
    system.MEMORY,
    cpu.KERNELS,
    cpu.INSTRUCTION_SET,
    cpu.SELF_TEST,
    cuda.CUDA,
    gpu.GPU,
    cuda.TRITON,
    cuda.NF4,
    gpu.LINK,
    gpu.PINNED,
    system.SYSTEM,
    system.BATTERY,
    files.CHECKPOINT,
    files.DISK,
    files.PROFILE,
)


def examine(isa_setting: str, *, isa_is_forced: bool, subject: Subject) -> Iterator[Diagnosis]:
    """Run every check in order, and give each diagnosis as soon as it is there.

    isa_setting: what a user sets to force an instruction set; isa_is_forced: whether it is set. Without
    PyTorch, the checks that compute with it are left out.
    """
    examination = Examination(subject, isa_setting, isa_is_forced=isa_is_forced)
    has_torch = True
    for check in CHECKS:
        if check.needs_torch and not has_torch:
            return
        found = check.run(examination)
        if found is not None:
            has_torch = has_torch and found.verdict != "fails"
            yield found
