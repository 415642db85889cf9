"""A model that takes part: where it lies, what it takes on the disk, and whether it can be compared at all.

Reads config.json and headers only. Knows nothing of what is compared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.checkpoint.index import account
from ernie_local.checkpoint.parts import model_parts, routed_experts, stored_tensors
from ernie_local.config import ModelConfig, read_config
from ernie_local.errors import ModelUnusable


@dataclass(frozen=True, slots=True)
class Candidate:
    """`name` as it was given. routed_bits: bits a weight of the routed experts, None where there are none."""

    name: str
    directory: Path
    config: ModelConfig
    num_bytes: int
    routed_bits: float | None


def find_candidate(name: str) -> Candidate:
    """ModelUnusable where it is missing or not whole."""
    directory = resolve_model(name)
    config = read_config(directory)
    accounts = account(directory, read_stored_tensors(directory), config)
    parts = model_parts(stored_tensors(accounts, config), config)
    routed = routed_experts(parts)
    return Candidate(
        name=name,
        directory=directory,
        config=config,
        num_bytes=sum(part.num_bytes for part in parts),
        routed_bits=None if routed is None else routed.bits_per_weight,
    )


def check_comparable(reference: Candidate, other: Candidate) -> None:
    """Raise ModelUnusable where `other` is no version of the reference: every size must be the same."""
    for part in ("text", "vision", "media"):
        ours, theirs = (dataclasses.asdict(getattr(each.config, part)) for each in (reference, other))
        for key, wanted in ours.items():
            if theirs[key] != wanted:
                raise ModelUnusable(
                    f"{other.name} has {key} {theirs[key]}, the reference {wanted}",
                    "only versions of one model can be compared position by position",
                    "name checkpoints that were made from the reference",
                )
