"""The check of Triton, which compiles kernels for cards: whether it is installed. It is not imported."""

from __future__ import annotations

from importlib import metadata

from ernie_local.doctor.finding import Finding

NAME = "triton"
_PACKAGES = ("triton", "triton-windows")
_FALLBACK_PACKAGE = "bitsandbytes"


def check(*, has_card: bool) -> Finding:
    """Slow where there is a card and no Triton; what stands in for it is named."""
    version = next(filter(None, map(_version, _PACKAGES)), None)
    fallback = None
    if version is None:
        fallback = _FALLBACK_PACKAGE if _version(_FALLBACK_PACKAGE) is not None else "torch"
    facts = {"version": version, "fallback": fallback}
    if version is not None:
        return Finding(
            NAME, "ok", f"Triton {version}" + ("" if has_card else ", without a card"), None, facts
        )
    if not has_card:
        return Finding(NAME, "ok", "absent, and only a card would use it", None, facts)
    stands_in = "bitsandbytes (nf4 alone) and plain PyTorch" if fallback != "torch" else "plain PyTorch"
    return Finding(
        NAME, "slow", f"absent: {stands_in} would compute on the card", "pip install triton", facts
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
