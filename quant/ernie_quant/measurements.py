"""What was measured of a model before bits are given out: losses of experts, sensitivity of layers.

Owns the file that keeps them, and the check that they belong to a model. Knows nothing of how they were
measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ernie_local.config import Bank
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import replaced
from ernie_quant.option_losses import OptionLosses

_SCHEMA = "ernie-local.statistics/1"
ExpertKey = tuple[int, Bank, int]


@dataclass(frozen=True, slots=True)
class Measurements:
    """By layer, bank and expert what each format loses, and how many of `tokens` the router sent there.

    expert_divergence, dense_divergence: by layer the KL divergence at the answers, in nats a position, when
    the layer's experts are rounded to `probe_format`, and its attention and shared experts or MLP to w4;
    head_divergence: when the head is rounded to w4. identity: of source, samples and version.
    """

    identity: dict[str, str]
    tokens: dict[Bank, int]
    positions: int
    probe_format: str
    experts: dict[ExpertKey, OptionLosses]
    visits: dict[ExpertKey, int]
    expert_divergence: dict[int, float]
    dense_divergence: dict[int, float]
    head_divergence: float


def write_measurements(path: Path, measured: Measurements) -> None:
    """As JSON, whole or not at all."""
    experts = [
        {
            "layer": layer_id,
            "bank": bank,
            "expert": expert_id,
            "tokens": measured.visits[layer_id, bank, expert_id],
            "power": losses.power,
            "lost": losses.lost,
        }
        for (layer_id, bank, expert_id), losses in measured.experts.items()
    ]
    raw = {
        "schema": _SCHEMA,
        "identity": measured.identity,
        "tokens": measured.tokens,
        "positions": measured.positions,
        "probe_format": measured.probe_format,
        "expert_divergence": measured.expert_divergence,
        "dense_divergence": measured.dense_divergence,
        "head_divergence": measured.head_divergence,
        "experts": experts,
    }
    with replaced(path) as new:
        new.write_text(json.dumps(raw, indent=1), encoding="utf-8")


def read_measurements(path: Path, identity: dict[str, str]) -> Measurements:
    """What `write_measurements` wrote.

    InputUnreadable for a file that is none; UsageError for one of another model, other samples, or another
    version: numbers of `identity` that differ are named.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("schema") != _SCHEMA:
            raise ValueError(f"its schema is not {_SCHEMA}")
        measured = _parse(raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputUnreadable(
            f"{path} cannot be read as statistics: {error}",
            "they are written by `ernie-local calibrate`",
            "make them again",
        ) from error
    differing = sorted(name for name in identity if measured.identity.get(name) != identity[name])
    if differing:
        raise UsageError(
            f"{path} holds statistics of something else: {', '.join(differing)} differ",
            "bits given out by them would go to the wrong experts",
            "name the statistics of this model and these samples, or remove the file to measure anew",
        )
    return measured


def _parse(raw: dict[str, object]) -> Measurements:
    def by_layer(name: str) -> dict[int, float]:
        values = raw[name]
        if not isinstance(values, dict):
            raise TypeError(f"{name} is not an object")
        return {int(layer): float(value) for layer, value in values.items()}

    experts: dict[ExpertKey, OptionLosses] = {}
    visits: dict[ExpertKey, int] = {}
    entries = raw["experts"]
    identity, tokens = raw["identity"], raw["tokens"]
    if not isinstance(entries, list) or not isinstance(identity, dict) or not isinstance(tokens, dict):
        raise TypeError("experts, identity or tokens have the wrong type")
    for entry in entries:
        key = int(entry["layer"]), str(entry["bank"]), int(entry["expert"])
        experts[key] = OptionLosses(float(entry["power"]), entry["lost"])
        visits[key] = int(entry["tokens"])
    return Measurements(
        identity=dict(identity),
        tokens={str(bank): int(count) for bank, count in tokens.items()},
        positions=int(str(raw["positions"])),
        probe_format=str(raw["probe_format"]),
        experts=experts,
        visits=visits,
        expert_divergence=by_layer("expert_divergence"),
        dense_divergence=by_layer("dense_divergence"),
        head_divergence=float(str(raw["head_divergence"])),
    )
