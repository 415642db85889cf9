"""The object that `ernie-local quantize --json` prints: its shape, described in docs/quantize-json.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_quant.calibration import ExpertReports

SCHEMA = "ernie-local.quantize/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has made nothing."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "out": None,
        "weight_bytes": None,
        "calibration_tokens": None,
        "seconds": None,
        "plan": None,
        "experts": [],
        "error": None,
    }


def expert_list(reports: ExpertReports) -> list[dict[str, object]]:
    """What each calibrated expert was made from, and the share of its outputs' power that was lost."""
    return [
        {
            "layer": layer_id,
            "bank": bank,
            "expert": expert_id,
            **report.values(),
        }
        for (layer_id, bank, expert_id), report in reports.items()
    ]
