"""Finds a model that takes part: its directory, size and bits, and whether it can be compared at all."""

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
    """name: as given by the user; routed_bits: bits a weight of the routed experts, None without any."""

    name: str
    directory: Path
    config: ModelConfig
    num_bytes: int
    routed_bits: float | None


def find_candidate(name: str) -> Candidate:
    """ModelUnusable if it is missing or incomplete."""
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
    """Raise ModelUnusable unless `other` has all sizes of the reference."""
    for part in ("text", "vision", "media"):
        ours, theirs = (dataclasses.asdict(getattr(each.config, part)) for each in (reference, other))
        for key, wanted in ours.items():
            if theirs[key] != wanted:
                raise ModelUnusable(
                    f"{other.name} has {key} {theirs[key]}, the reference {wanted}",
                    "only versions of one model can be compared position by position",
                    "name checkpoints made from the reference",
                )
