"""Keeps what was measured of a model: losses of experts in each format, and sensitivity of layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from ernie_local.config import Bank
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import replaced
from ernie_quant.expert import RoutedExpert
from ernie_quant.losses import OptionLosses


class _OfModel(msgspec.Struct, frozen=True):
    """What is measured of the whole model.

    tokens: of each bank; positions: of answers. expert_divergence, dense_divergence: by layer the KL
    divergence at the answers, in nats a position, when the layer's experts are rounded to `probe_format`, or
    its attention and its shared experts or MLP to w4; head_divergence: when the head is rounded to w4.
    identity: of source, samples and version.
    """

    identity: dict[str, str]
    tokens: dict[Bank, int]
    positions: int
    probe_format: str
    expert_divergence: dict[int, float]
    dense_divergence: dict[int, float]
    head_divergence: float


class Measurements(_OfModel, frozen=True):
    """Besides these, for each expert what each format loses, and how many of `tokens` are routed to it."""

    experts: dict[RoutedExpert, OptionLosses]
    visits: dict[RoutedExpert, int]


class _ExpertEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layer: int
    bank: Bank
    expert: int
    tokens: int
    power: float
    lost: dict[str, dict[str, float]]


class _StatisticsFile(
    _OfModel, frozen=True, forbid_unknown_fields=True, tag_field="schema", tag="ernie-local.statistics/1"
):
    experts: list[_ExpertEntry]


def write_measurements(path: Path, measured: Measurements) -> None:
    """Write them as JSON, whole or not at all."""
    experts = [
        _ExpertEntry(*key, tokens=measured.visits[key], power=losses.power, lost=losses.lost)
        for key, losses in measured.experts.items()
    ]
    content = _StatisticsFile(**_of_model(measured), experts=experts)
    with replaced(path) as new:
        new.write_text(json.dumps(msgspec.to_builtins(content), indent=1), encoding="utf-8")


def read_measurements(path: Path, identity: dict[str, str]) -> Measurements:
    """Read what `write_measurements` wrote.

    InputUnreadable for any other file; UsageError for measurements of another model, other samples or another
    version, with the names that differ from `identity`.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_StatisticsFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputUnreadable(
            f"{path} cannot be read as statistics: {error}",
            "they are written by `ernie-local calibrate`",
            "make them again",
        ) from error
    differing = sorted(name for name in identity if content.identity.get(name) != identity[name])
    if differing:
        raise UsageError(
            f"{path} holds statistics of something else: {', '.join(differing)} differ",
            "they would give bits to the wrong experts",
            "name the statistics of this model and these samples, or remove the file to measure again",
        )
    entries = {(entry.layer, entry.bank, entry.expert): entry for entry in content.experts}
    return Measurements(
        **_of_model(content),
        experts={key: OptionLosses(entry.power, entry.lost) for key, entry in entries.items()},
        visits={key: entry.tokens for key, entry in entries.items()},
    )


def _of_model(source: _OfModel) -> dict[str, Any]:
    return {name: getattr(source, name) for name in _OfModel.__struct_fields__}
