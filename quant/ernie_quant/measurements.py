"""Keeps what was measured of a model: losses of experts in each format, and sensitivity of layers."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from ernie_local.config import Bank
from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.files import read_plain, replaced

STATISTICS_FILE = "statistics.json"  # in a checkpoint whose formats were chosen by measurements
_MAX_BYTES = 256 << 20  # of the original about 2 MB


class ExpertLosses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an expert loses in each format.

    tokens: routed to it; power: sum over them of squared router weight times squared output; lost: by
    part and format, the share of `power` that is lost when this part is rounded to this format.
    """

    layer: int
    bank: Bank
    expert: int
    tokens: int
    power: float
    lost: dict[str, dict[str, float]]


class Measurements(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="schema",
    tag="ernie-local.statistics/1",
):
    """What is measured of a model, as in the file.

    identity: of source, samples and version. tokens: of each bank; positions: of answers. expert_divergence,
    dense_divergence: by layer the KL divergence at the answers, in nats a position, when the layer's experts
    are rounded to `probe_format`, or its attention and its shared experts or MLP to w4; head_divergence: when
    the head is rounded to w4. experts: layer by layer and bank by bank.
    """

    identity: dict[str, str]
    tokens: dict[Bank, int]
    positions: int
    probe_format: str
    expert_divergence: dict[int, float]
    dense_divergence: dict[int, float]
    head_divergence: float
    experts: list[ExpertLosses]


def write_measurements(path: Path, measured: Measurements) -> None:
    """Write them as JSON, whole or not at all."""
    with replaced(path) as new:
        new.write_text(json.dumps(msgspec.to_builtins(measured), indent=1), encoding="utf-8")


def read_measurements(path: Path, identity: dict[str, str]) -> Measurements:
    """Read what `write_measurements` wrote.

    ModelUnusable for any other file; UsageError for measurements of another model, other samples or another
    version, with the names that differ from `identity`.
    """
    try:
        measured = msgspec.json.decode(read_plain(path, _MAX_BYTES), type=Measurements)
    except (OSError, ValueError) as error:  # also what msgspec raises
        raise damaged_measurements(path, str(error)) from error
    differing = sorted(name for name in identity if measured.identity.get(name) != identity[name])
    if differing:
        raise UsageError(
            f"{path} holds statistics of something else: {', '.join(differing)} differ",
            "they would give bits to the wrong experts",
            "name the statistics of this model and these samples, or remove the file to measure again",
        )
    return measured


def damaged_measurements(path: Path, why: str) -> ModelUnusable:
    """The error for a file that is not as `write_measurements` wrote it."""
    return ModelUnusable(
        f"{path} is damaged, so no measurements can be read from it",
        why,
        "delete this file and run the same command again, which then measures again",
    )
