"""The object that `ernie-local inspect --json` prints: its shape, described in docs/inspect-json.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.checkpoint.parts import ModelPart

SCHEMA = "ernie-local.inspect/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has read nothing."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "directory": None,
        "layout": None,
        "weights": None,
        "bytes": None,
        "parts": [],
        "routed_experts": None,
        "ignored": [],
        "source": {},
        "calibration": {},
        "error": None,
    }


def part_fields(parts: Sequence[ModelPart]) -> dict[str, object]:
    """The keys that the parts fill."""
    from ernie_local.checkpoint.parts import routed_experts, sum_of_parts

    whole, routed = sum_of_parts("all", parts), routed_experts(parts)
    return {
        "weights": whole.weights,
        "bytes": whole.num_bytes,
        "parts": [_fields(part, whole) for part in parts],
        "routed_experts": None if routed is None else _fields(routed, whole),
    }


def _fields(part: ModelPart, whole: ModelPart) -> dict[str, object]:
    return {
        "name": part.name,
        "weights": part.weights,
        "bytes": part.num_bytes,
        "share": part.num_bytes / whole.num_bytes,
        "bits_per_weight": part.bits_per_weight,
        "formats": dict(part.formats),
        "pages": dict(part.pages),
    }
