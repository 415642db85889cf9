"""Looks through all weights of a source before hours of work, so that a damaged one shows within minutes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ernie_local.checkpoint.index import Accounts, compression_notes
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig

# Reading is what takes time: in multiply-adds a byte as `plan` counts them, that of a disk of 400 MB/s.
_COST_PER_BYTE = 200 / 1e9


def source_notes(config: ModelConfig, accounts: Accounts) -> list[str]:
    """Lines about a source that another tool has quantized: its errors stay, and those of this run add up."""
    notes = compression_notes(config, accounts)
    if notes:
        notes.append("the source is quantized twice then: from the bfloat16 checkpoint less is lost")
    return notes


def check_costs(checkpoint: Checkpoint) -> dict[str, float]:
    """The cost of each unit of `weight_checks`, in the measure of `plan.unit_costs`."""
    sources = checkpoint.accounts.sources
    return {
        unit: sum(sources[name].num_bytes for name in names) * _COST_PER_BYTE
        for unit, names in _units(checkpoint).items()
    }


def weight_checks(checkpoint: Checkpoint) -> dict[str, Callable[[], None]]:
    """Units of weights, and what reads all of each; ModelUnusable for the first weight that is damaged."""
    return {unit: partial(_check, checkpoint, names) for unit, names in _units(checkpoint).items()}


def _check(checkpoint: Checkpoint, names: list[str]) -> None:
    for name in names:
        checkpoint.check(name)


def _units(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Names of the tensors of each unit: a layer, or what has one place outside of them. In file order."""
    sources = checkpoint.accounts.sources
    units: dict[str, list[str]] = {}
    # A disk reads its files from beginning to end fastest.
    for name in sorted(sources, key=lambda name: (sources[name].stored.path, sources[name].offset)):
        part, *rest = name.split(".")
        unit = f"layer {rest[0]}" if part in ("layers", "experts") else part
        units.setdefault(f"weights of {unit}", []).append(name)
    return units
