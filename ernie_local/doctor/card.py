"""The check of graphics cards, by the driver's own tool: what they can compute, and who has their memory."""

from __future__ import annotations

from collections.abc import Sequence

from ernie_local.doctor.finding import Finding
from ernie_local.kernels.triton_path import LEAST_CAPABILITY
from ernie_local.machine.nvidia_smi import CardReport
from ernie_local.sizes import format_bytes

NAME = "card"
_BFLOAT16_CAPABILITY = (8, 0)  # below it there is no arithmetic in bfloat16
# A card that shows a desktop has some of its memory in use, and that is no reason to worry.
_HELD_SHARE = 0.25


def check(cards: Sequence[CardReport] | None) -> Finding:
    """Ok without a card; slow where one is too old for Triton, or others hold much of its memory."""
    facts: dict[str, object] = {
        "cards": [
            {
                "name": card.name,
                "compute_capability": None
                if card.compute_capability is None
                else ".".join(map(str, card.compute_capability)),
                "total_bytes": card.total_bytes,
                "free_bytes": card.free_bytes,
                "processes": [{"name": one.name, "bytes": one.bytes} for one in card.processes],
            }
            for card in cards or ()
        ]
    }
    if not cards:
        reason = "no nvidia-smi that answers" if cards is None else "nvidia-smi names none"
        return Finding(NAME, "ok", f"none: {reason}", None, facts)
    text = "; ".join(_describe(card) for card in cards)
    for card in cards:
        fix = _fix(card)
        if fix is not None:
            return Finding(NAME, "slow", text, fix, facts)
    return Finding(NAME, "ok", text, None, facts)


def _describe(card: CardReport) -> str:
    text = card.name
    if card.compute_capability is not None:
        text += f", compute capability {'.'.join(map(str, card.compute_capability))}"
        if card.compute_capability < LEAST_CAPABILITY:
            text += " (no Triton, no bfloat16)"
        elif card.compute_capability < _BFLOAT16_CAPABILITY:
            text += " (no bfloat16: float16 in its place)"
    if card.total_bytes is not None and card.free_bytes is not None:
        text += f", {format_bytes(card.free_bytes)} free of {format_bytes(card.total_bytes)}"
    named = [
        one.name if one.bytes is None else f"{one.name} {format_bytes(one.bytes)}" for one in card.processes
    ]
    return text + (f" (held by {', '.join(named)})" if named else "")


def _fix(card: CardReport) -> str | None:
    if card.compute_capability is not None and card.compute_capability < LEAST_CAPABILITY:
        return "compute on the processor (--device cpu), or use a card of capability 7.0 or more"
    if card.total_bytes is not None and card.free_bytes is not None:
        held = card.total_bytes - card.free_bytes
        if held > _HELD_SHARE * card.total_bytes:
            return (
                f"close what holds {format_bytes(held)} of the card's memory, or connect the screen elsewhere"
            )
    return None
