"""Runs one check of the doctor on a machine that a test makes up."""

from __future__ import annotations

from pathlib import Path

from ernie_local.doctor import Check, Diagnosis, Examination, Subject

SETTING = "FORCED_BY"


def look(
    check: Check, subject: Subject | None = None, *, isa_is_forced: bool = False, **facts: object
) -> Diagnosis:
    """What the check finds; facts: attributes of the Examination that are given instead of looked up."""
    somewhere = Subject(None, Path("/tmp"), Path("/nowhere/machine.json"))
    examination = Examination(subject or somewhere, SETTING, isa_is_forced=isa_is_forced)
    for name, value in facts.items():
        setattr(examination, name, value)
    found = check.run(examination)
    assert found is not None
    return found
