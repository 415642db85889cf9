"""What this machine offers to ernie-local, checked one thing after the other, each with a verdict.

A check is a module with a function `check` that returns a Finding; `examine` puts them in order. A check
changes nothing for good, and imports torch when it runs. Knows nothing of how findings are printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ernie_local.doctor import (
    battery,
    checkpoint,
    cuda,
    disk,
    gpu,
    instruction_set,
    kernels,
    link,
    memory,
    nf4,
    pinned,
    profile,
    python,
    self_test,
    system,
    triton,
)
from ernie_local.doctor.finding import Finding, Verdict, worst_verdict
from ernie_local.machine.nvidia_smi import read_gpus

__all__ = ["Finding", "Subject", "Verdict", "examine", "worst_verdict"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined beside the machine.

    model: whose files are checked, None for none. temporary_folder: on the disk that is timed without one.
    profile_path: where `bench` stores what it measured.
    """

    model: str | None
    temporary_folder: Path
    profile_path: Path


def examine(isa_setting: str, *, isa_is_forced: bool, subject: Subject) -> Iterator[Finding]:
    """Run every check, and give each finding as soon as it is there.

    isa_setting: what a user sets to force an instruction set; isa_is_forced: whether it was set.
    """
    finding = python.check()
    yield finding
    yield memory.check()
    yield kernels.check()
    if finding.verdict == "fails":  # the others compute with PyTorch, which is not there
        return
    yield instruction_set.check(isa_setting, is_forced=isa_is_forced)
    yield self_test.check(isa_setting)
    gpus = read_gpus()
    yield cuda.check(gpus)
    yield gpu.check(gpus)
    yield triton.check(gpus)
    yield nf4.check(gpus)
    stored, finding = profile.check(subject.profile_path)
    yield link.check(gpus, stored)
    yield pinned.check()
    yield system.check(gpus)
    yield battery.check()
    found, files = checkpoint.check(subject.model)
    if found is not None:
        yield found
    yield disk.check(files, subject.temporary_folder)
    yield finding
