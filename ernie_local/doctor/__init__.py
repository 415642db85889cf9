"""What this machine offers to ernie-local, checked one thing after the other, each with a verdict.

A check is a module with a function `check` that returns a Finding; `examine` puts them in order. A check
changes nothing for good, and imports torch when it runs. Knows nothing of how findings are printed.
"""

from __future__ import annotations

from collections.abc import Iterator

from ernie_local.doctor import cuda, instruction_set, kernels, memory, python, self_test
from ernie_local.doctor.finding import Finding, Verdict, worst_verdict

__all__ = ["Finding", "Verdict", "examine", "worst_verdict"]


def examine(isa_setting: str, *, isa_is_forced: bool) -> Iterator[Finding]:
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
    yield cuda.check()
