"""The check of page-locked memory, from which a GPU reads on its own."""

from __future__ import annotations

from ernie_local.doctor.finding import Finding
from ernie_local.machine.pinned import locked_limit, pinned_quota
from ernie_local.sizes import GIB, format_bytes

NAME = "pinned"
# Below this a GPU's experts come through memory that is copied twice.
_LITTLE = GIB


def check() -> Finding:
    """Slow where a GPU is there and its driver locks little; without one nothing needs it."""
    import torch

    limit = locked_limit()
    quota = pinned_quota() if torch.cuda.is_available() else None
    facts = {"limit_bytes": limit, "quota_bytes": quota}
    shown = "no limit" if limit is None else f"limit {format_bytes(limit)}"
    if quota is None:
        return Finding(NAME, "ok", f"not needed without a GPU ({shown})", None, facts)
    text = f"the driver locks {format_bytes(quota)} at least ({shown})"
    if quota < _LITTLE:
        fix = "raise the limit of locked memory (ulimit -l unlimited); under WSL, memory= in .wslconfig"
        return Finding(NAME, "slow", text, fix, facts)
    return Finding(NAME, "ok", text, None, facts)
