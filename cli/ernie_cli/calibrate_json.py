"""What `ernie-local calibrate` prints: the object of `--json` (docs/calibrate-json.md), and a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_quant.measurements import Measurements

SCHEMA = "ernie-local.calibrate/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has measured nothing."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "out": None,
        "tokens": None,
        "positions": None,
        "layers": [],
        "head_divergence": None,
        "error": None,
    }


def measured_fields(measured: Measurements) -> dict[str, object]:
    """The keys that the measurements fill."""
    return {
        "tokens": measured.tokens,
        "positions": measured.positions,
        "head_divergence": measured.head_divergence,
        "layers": [
            {
                "layer": layer_id,
                "dense_divergence": divergence,
                "expert_divergence": measured.expert_divergence.get(layer_id),
                "unvisited_text_experts": _unvisited(measured, layer_id, "text"),
                "unvisited_vision_experts": _unvisited(measured, layer_id, "vision"),
            }
            for layer_id, divergence in measured.dense_divergence.items()
        ],
    }


def lines(measured: Measurements) -> Iterator[str]:
    """A line a layer: what rounding it costs at the answers, and which experts no token came to."""
    counts = [f"{count:,} {bank} tokens" for bank, count in measured.tokens.items()]
    yield f"{' and '.join(counts)}, {measured.positions:,} answer positions"
    experts = f"experts {measured.probe_format}"
    yield f"{'layer':>5}  {experts:>12}  {'others w4':>12}  experts without a token"
    for layer_id, divergence in measured.dense_divergence.items():
        of_experts = measured.expert_divergence.get(layer_id)
        told = "dense" if of_experts is None else f"{of_experts:.6f}"
        counts = [f"{bank} {_unvisited(measured, layer_id, bank)}" for bank in measured.tokens]
        unvisited = "" if of_experts is None else f"  {', '.join(counts)}"
        yield f"{layer_id:>5}  {told:>12}  {divergence:>12.6f}{unvisited}"
    yield f" head  {'':>12}  {measured.head_divergence:>12.6f}"


def _unvisited(measured: Measurements, layer_id: int, bank: str) -> int:
    return sum(
        visits == 0
        for (own_layer, own_bank, _), visits in measured.visits.items()
        if (own_layer, own_bank) == (layer_id, bank)
    )
