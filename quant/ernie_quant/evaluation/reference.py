"""What the reference did, kept in a file, and its head: enough to compare without its other weights.

Final hidden states take 5 KB a position of the original where logits would take 400, and its own head makes
the very same logits of them. Owns that file and its identity. Knows nothing of checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ernie_calibration.sample import Turn
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.files import replaced
from ernie_local.loading.build import build_head
from ernie_local.loading.options import WEIGHT_DTYPES, find_device, find_dtype
from ernie_local.model.ernie import ErnieModel
from ernie_quant.evaluation.observation import Observation

_IDENTITY, _TURNS = "identity", "turns"


def load_head(directory: Path, dtype: str, device: str) -> ErnieModel:
    """The head of the model in `directory`: its `logits` works, and little else of it is there.

    Errors as those of `ernie_local.load`.
    """
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        weight_dtype = find_dtype(dtype, "dtype", WEIGHT_DTYPES)
        return build_head(checkpoint, config, weight_dtype, find_device(device))


def check_place(path: Path) -> None:
    """Raise UsageError unless a file can be written there: known before hours of work, not behind them."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"{path} cannot be written",
            "it is a directory, or its directory is missing or not yours to write to",
            "name a file in a directory of your own",
        )


def save_observations(path: Path, identity: Mapping[str, str], observations: Sequence[Observation]) -> None:
    """Write the file in one step; DoesNotFit, with nothing left over, where the disk is full."""
    turns = [
        {
            "document": observed.document,
            "turn": dataclasses.asdict(observed.turn),
            "prompt_identity": observed.prompt_identity,
            "token_ids": observed.token_ids,
            "num_forced": len(observed.forced_ids),
            "answer": observed.answer,
        }
        for observed in observations
    ]
    tensors = {
        "states": torch.cat([observed.states for observed in observations]),
        "choices": torch.cat([observed.choices for observed in observations], dim=1).contiguous(),
    }
    try:
        with replaced(path) as new:
            save_file(tensors, new, {_IDENTITY: json.dumps(dict(identity)), _TURNS: json.dumps(turns)})
    except (OSError, SafetensorError) as error:
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        raise DoesNotFit(
            f"{num_bytes} bytes of the reference's results cannot be written to {path}",
            str(error),
            "free that much on the disk, or name a file on another one",
        ) from error


def load_observations(path: Path, identity: Mapping[str, str]) -> list[Observation]:
    """What `save_observations` wrote. UsageError where it is of another identity, or no such file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            before, turns = json.loads(metadata[_IDENTITY]), json.loads(metadata[_TURNS])
            states, choices = file.get_tensor("states"), file.get_tensor("choices")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path} is no file of a reference's results: {error}",
            "it was damaged, or something else wrote it",
            "delete it, or name another file",
        ) from error
    differing = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
    if differing:
        raise UsageError(
            f"{path} holds results of another reference: {', '.join(differing)} differ",
            "comparing with them would mean nothing",
            "give the model and options of before, or name another file",
        )
    observations = []
    first_state = first_token = 0
    for entry in turns:
        num_tokens, num_forced = len(entry["token_ids"]), entry["num_forced"]
        token_ids = tuple(entry["token_ids"])
        observations.append(
            Observation(
                document=entry["document"],
                turn=Turn(**entry["turn"]),
                prompt_identity=entry["prompt_identity"],
                token_ids=token_ids,
                forced_ids=token_ids[num_tokens - num_forced :],
                states=states[first_state : first_state + num_forced + 1],
                choices=choices[:, first_token : first_token + num_tokens],
                answer=entry["answer"],
            )
        )
        first_state += num_forced + 1
        first_token += num_tokens
    return observations
