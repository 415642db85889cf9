"""How long a run will take: from a rehearsal, and ever better from the units that are done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import Bank, read_config
from ernie_quant import units as units_module
from ernie_quant.pace import Pace, kind_of
from ernie_quant.recipe import Recipe
from ernie_quant.rehearsal import rehearse
from ernie_quant.units import Units

# What nano's units cost and took: seconds a cost (docs/performance.md).
COSTS = {
    **{f"layers.{layer}.mlp.w8": 1.0 for layer in range(6)},
    **{f"sequence {number}": 0.07 for number in range(24)},
    **{f"expert {layer}.text.{expert}": 1.4 for layer in range(1, 6) for expert in range(16)},
    **{f"expert {layer}.vision.{expert}": 0.07 for layer in range(1, 6) for expert in range(16)},
    **{f"attention {layer}.{part}": 0.7 for layer in range(6) for part in range(7)},
    **{f"outputs {layer}.{part}": 0.3 for layer in range(6) for part in range(7)},
}
TRUE = {
    "fixed": 0.02,
    "sequence": 0.13,
    "attention": 0.09,
    "outputs": 0.09,
    "expert text": 0.07,
    "expert vision": 0.25,
}
AFTER = 4.0


def in_order(costs: Mapping[str, float]) -> list[str]:
    """Fixed tensors, sequences, and layer by layer attention, text experts, vision experts, outputs."""

    def place(unit: str) -> tuple[int, ...]:
        kind = kind_of(unit)
        if kind in ("fixed", "sequence"):
            return (0, kind == "sequence")
        layer = int(unit.split()[1].split(".", maxsplit=1)[0])
        return (1, layer, ["attention", "expert text", "expert vision", "outputs"].index(kind))

    return sorted(costs, key=place)


@pytest.mark.parametrize("off", [0.8, 1.0, 1.25])
def test_the_time_left_is_known_within_30_percent_from_the_rehearsal_on(
    off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(units_module, "time", SimpleNamespace(monotonic=lambda: now))
    told: list[tuple[float, float]] = []  # the time, and what was said to be left
    stand_in = cast("Any", SimpleNamespace(done={}, record=lambda *_: None, sync=lambda: None))
    rehearsed = {kind: TRUE[kind] * off for kind in ("expert text", "expert vision")}
    units = Units(
        stand_in,
        stand_in,
        COSTS,
        Pace(COSTS, rehearsed),
        AFTER,
        lambda _unit, done, of_all: told.append((now, of_all - done)),
        None,
    )
    for unit in in_order(COSTS):
        now += COSTS[unit] * TRUE[kind_of(unit)]
        units.finish(unit)
    end = now + AFTER
    assert len(told) == len(COSTS) + 1
    for time_told, left in told:
        assert left == pytest.approx(end - time_told, rel=0.3)
    # Before the units after half of the work it is better than the rehearsal was.
    late = [left / (end - time_told) for time_told, left in told if time_told > end / 2]
    assert max(abs(ratio - 1) for ratio in late) < 0.15


def test_what_was_not_rehearsed_is_learned_from_others() -> None:
    """Methods without calibration rehearse nothing, and have one kind of unit or little of others."""
    pace = Pace({"a": 1.0, "b": 3.0, "layer 1": 4.0}, {})
    pace.learn("a", 5.0)
    assert pace.seconds({"b": 3.0}) == pytest.approx(15.0)
    assert pace.seconds({"layer 1": 4.0}) == pytest.approx(20.0)


def test_a_resumed_run_counts_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units_module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    told: list[tuple[float, float]] = []
    done: dict[str, dict[str, float]] = {unit: {} for unit in in_order(COSTS)[:100]}
    stand_in = cast("Any", SimpleNamespace(done=done, record=lambda *_: None, sync=lambda: None))
    pace = Pace(COSTS, {"expert text": 0.07, "expert vision": 0.25})
    Units(stand_in, stand_in, COSTS, pace, AFTER, lambda _, *seconds: told.append(seconds), None)
    ((before, of_all),) = told
    assert before == pytest.approx(pace.seconds({unit: COSTS[unit] for unit in done}))
    assert of_all == pytest.approx(pace.seconds(COSTS) + AFTER)


def test_an_expert_of_each_bank_is_rehearsed(tmp_path: Path) -> None:
    plain = read_config(NANO_DIRECTORY)
    config = dataclasses.replace(
        plain, quantization=format_tables(plain, FormatChoice("w4", small_experts="w2"))
    )
    tokens: dict[Bank, float] = {"text": 900.0, "vision": 0.0}
    paces = rehearse(config, Recipe(sweeps=0), tmp_path, tokens)
    assert paces.keys() == {"expert text", "expert vision"}
    assert all(0 < pace < 100 for pace in paces.values())
    assert list(tmp_path.iterdir()) == []
