"""Token ids to time a model with: random ones, so that experts are chosen as evenly as they ever will be."""

from __future__ import annotations

import dataclasses

import torch

from ernie_local.config import ModelConfig

_FIRST = 3  # behind the unknown token and those of begin and end


def text_ids(config: ModelConfig, count: int, seed: int = 0) -> list[int]:
    """`count` seeded ids, none of them an image's."""
    media = set(dataclasses.astuple(config.media))
    text = [one for one in range(_FIRST, config.text.vocab_size) if one not in media]
    chosen = torch.randint(len(text), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [text[one] for one in chosen]
