"""Stores what the reference did, and loads its head: enough to compare without its other weights.

Final hidden states take 5 KB a position for the original, logits would take 400 KB; its own head makes the
same logits of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.files import check_plain, place_of_new_file, replaced
from ernie_local.loading.build import build_head
from ernie_local.loading.options import WEIGHT_DTYPES, find_device, find_dtype
from ernie_local.model.ernie import ErnieModel
from ernie_quant.evaluation.observation import AskedTurn, Observation

_IDENTITY, _TURNS = "identity", "turns"


def load_head(directory: Path, dtype: str, device: str) -> ErnieModel:
    """The head of the model in `directory`: little else than its `logits` works.

    Errors as those of `ernie_local.load`.
    """
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        weight_dtype = find_dtype(dtype, "dtype", WEIGHT_DTYPES)
        return build_head(checkpoint, config, weight_dtype, find_device(device))


def check_place(path: Path) -> None:
    """Raise UsageError unless a file can be written there; checked before hours of work."""
    try:
        is_good = os.access(place_of_new_file(path).parent, os.W_OK)
        reason = "" if is_good else "its directory is missing or not writable"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UsageError(
            f"{path} cannot be written",
            reason,
            "name a file in a writable directory",
        )


def save_observations(path: Path, identity: Mapping[str, str], observations: Sequence[Observation]) -> None:
    """Write the file in one step; DoesNotFit, with nothing left behind, if the disk is full."""
    turns = msgspec.json.encode([observed.asked for observed in observations])
    tensors = {
        "states": torch.cat([observed.states for observed in observations]),
        "choices": torch.cat([observed.choices for observed in observations], dim=1).contiguous(),
    }
    try:
        with replaced(path) as new:
            save_file(tensors, new, {_IDENTITY: json.dumps(dict(identity)), _TURNS: turns.decode()})
    except (OSError, SafetensorError) as error:
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        raise DoesNotFit(
            f"{num_bytes} bytes of the reference's results cannot be written to {path}",
            str(error),
            "free that much on the disk, or name a file on another disk",
        ) from error


def load_observations(path: Path, identity: Mapping[str, str]) -> list[Observation]:
    """Read what `save_observations` wrote. UsageError for another identity or any other file."""
    try:
        check_plain(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            before = msgspec.json.decode(metadata[_IDENTITY], type=dict[str, str])
            turns = msgspec.json.decode(metadata[_TURNS], type=list[AskedTurn])
            states, choices = file.get_tensor("states"), file.get_tensor("choices")
    except (SafetensorError, OSError, KeyError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{path} is not a file of a reference's results: {error}",
            "it is damaged, or was written by something else or by an earlier version",
            "delete it, or name another file",
        ) from error
    differing = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
    if differing:
        raise UsageError(
            f"{path} holds results of another reference: {', '.join(differing)} differ",
            "a comparison with them would be meaningless",
            "use the model and options of that file, or name another file",
        )
    of_turns = states.split([asked.num_forced + 1 for asked in turns])
    chosen = choices.split([len(asked.token_ids) for asked in turns], dim=1)
    return [Observation(*parts) for parts in zip(turns, of_turns, chosen, strict=True)]
