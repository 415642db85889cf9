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
        "ignored": [],
        "source": {},
        "calibration": {},
        "error": None,
    }


def part_fields(parts: Sequence[ModelPart]) -> dict[str, object]:
    """The keys that the parts fill."""
    return {
        "weights": sum(part.weights for part in parts),
        "bytes": sum(part.num_bytes for part in parts),
        "parts": [
            {
                "name": part.name,
                "weights": part.weights,
                "bytes": part.num_bytes,
                "bits_per_weight": part.bits_per_weight,
                "formats": dict(part.formats),
                "pages": dict(part.pages),
            }
            for part in parts
        ],
    }
