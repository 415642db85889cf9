"""The object that `ernie-local verify --json` prints: its shape, described in docs/verify-json.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.verify import Verification

SCHEMA = "ernie-local.verify/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has read nothing."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "directory": None,
        "tensors": None,
        "pages": None,
        "bytes": None,
        "files": {},
        "compared": None,
        "notes": [],
        "findings": [],
        "error": None,
    }


def result_fields(result: Verification) -> dict[str, object]:
    """The keys that a whole run fills."""
    return {
        "tensors": result.num_tensors,
        "pages": result.num_pages,
        "bytes": result.num_bytes,
        "files": {name: file.sha256 for name, file in result.hashes.items()},
        "compared": result.num_compared,
        "notes": list(result.notes),
        "findings": [
            {
                "file": finding.file,
                "tensor": finding.tensor,
                "page": finding.page,
                "what": finding.error.what,
                "why": finding.error.why,
                "hint": finding.error.hint,
            }
            for finding in result.findings
        ],
    }
