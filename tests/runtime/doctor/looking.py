"""Runs one check of the doctor on a machine that a test makes up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ernie_local.doctor import CHECKS, Diagnosis, Subject

SOMEWHERE = Subject(None, Path("/tmp"), Path("/nowhere/machine.json"), "FORCED_BY")


def look(check: str, subject: Subject = SOMEWHERE, **facts: object) -> Diagnosis:
    """What the check finds; facts: attributes of the subject that are given instead of looked up."""
    examined = dataclasses.replace(subject)
    for name, value in facts.items():
        setattr(examined, name, value)
    found = CHECKS[check](examined)
    assert found is not None
    return found
