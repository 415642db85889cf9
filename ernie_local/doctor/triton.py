"""The check of Triton, which compiles kernels for cards: whether they can run here. It is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from ernie_local.doctor.finding import Finding
from ernie_local.kernels.triton_path import LEAST_CAPABILITY, triton_absence
from ernie_local.machine.nvidia_smi import CardReport

NAME = "triton"
_PACKAGES = ("triton", "triton-windows")


def check(cards: Sequence[CardReport] | None) -> Finding:
    """Slow where there is a card on which the kernels cannot run; what stands in for them is named."""
    version = next(filter(None, map(_version, _PACKAGES)), None)
    if not cards:
        text = (
            "absent, and only a card would use it" if version is None else f"Triton {version}, without a card"
        )
        return Finding(NAME, "ok", text, None, {"version": version, "fallback": None})
    # The newest decides; a driver that does not tell is asked no more.
    capability = max(card.compute_capability or LEAST_CAPABILITY for card in cards)
    absence = triton_absence(capability)
    facts = {"version": version, "fallback": None if absence is None else "torch"}
    if absence is None:
        return Finding(NAME, "ok", f"Triton {version}", None, facts)
    text = f"not used, plain PyTorch would compute on the card: {absence.why}"
    return Finding(NAME, "slow", text, absence.hint, facts)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
