"""The object that `ernie-local doctor --json` prints: its shape, described in docs/doctor-json.md.

Owns its names, except those of a check's facts, which the check owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.doctor import Diagnosis

SCHEMA = "ernie-local.doctor/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has checked nothing."""
    return {"schema": SCHEMA, "ok": False, "verdict": None, "checks": [], "error": None}


def finding_fields(findings: Sequence[Diagnosis]) -> dict[str, object]:
    """The keys that the findings so far fill."""
    from ernie_local.doctor import worst_verdict

    return {
        "verdict": worst_verdict(findings),
        "checks": [
            {
                "name": finding.name,
                "verdict": finding.verdict,
                "text": finding.text,
                "fix": finding.fix,
                "facts": dict(finding.facts),
            }
            for finding in findings
        ],
    }
