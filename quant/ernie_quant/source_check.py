"""Looks through all weights of a source before hours of work, so that a damaged one shows within minutes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ernie_local.checkpoint.reader import Checkpoint

# Reading is what takes time: in multiply-adds a byte as `plan` counts them, that of a disk of 400 MB/s.
_COST_PER_BYTE = 200 / 1e9


def check_costs(checkpoint: Checkpoint) -> dict[str, float]:
    """The cost of each unit of `check_weights`, in the measure of `plan.unit_costs`."""
    sources = checkpoint.accounts.sources
    return {
        unit: sum(sources[name].num_bytes for name in names) * _COST_PER_BYTE
        for unit, names in _units(checkpoint).items()
    }


def check_weights(checkpoint: Checkpoint, done: Collection[str] = ()) -> Iterator[str]:
    """Read all weights but those of the units in `done`; yields each unit that was read.

    ModelUnusable for the first weight that is damaged.
    """
    for unit, names in _units(checkpoint).items():
        if unit not in done:
            for name in names:
                checkpoint.check(name)
            yield unit


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
