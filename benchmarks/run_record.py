"""Says where a benchmark ran and what it measured, for the JSON line at its end."""

from __future__ import annotations

import platform
import subprocess


def machine_and_commit() -> dict[str, str]:
    """The processor as Python names it, and the commit that is checked out."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {"machine": platform.processor() or platform.machine(), "commit": commit.stdout.strip()}
