"""What the objects of all commands' `--json` have in common: how the end of a run is written into one.

Knows nothing of any one command's keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from ernie_cli.failures import Failure


def finished(fields: Mapping[str, object], failure: Failure | None) -> dict[str, object]:
    """`fields` with the end of the run written in: success when `failure` is None."""
    error = None
    if failure is not None:
        error = {
            "code": failure.code,
            "exit_code": failure.exit_code,
            "what": failure.what,
            "why": failure.why,
            "hint": failure.hint,
        }
    return {**fields, "ok": failure is None, "error": error}
