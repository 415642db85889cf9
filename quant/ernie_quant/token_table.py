"""All calibration tokens of all sequences as they enter a layer, and how they get there at first.

Owns hidden states, positions and the bounds of the sequences. Knows nothing of layers or of quantizing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from accelerate import init_empty_weights

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError
from ernie_local.experts.packed import PackedExperts
from ernie_local.loading.build import fill_parameters
from ernie_local.media.patches import Patches
from ernie_local.media.prompt import Prompt
from ernie_local.model.ernie import ErnieModel


class TokenSequence(Protocol):
    """Ids with placeholders expanded, and the pictures that they stand for."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """(tokens,)."""
        ...

    @property
    def patches(self) -> tuple[Patches, ...]:
        """In the order of the placeholders."""
        ...


@dataclass(slots=True)
class TokenTable:
    """hidden: (tokens, hidden_size) float32, changed from layer to layer; positions: (3, tokens) int64;
    is_vision: (tokens,) bool; bounds: first token of each sequence, and the number of all."""

    hidden: torch.Tensor
    positions: torch.Tensor
    is_vision: torch.Tensor
    bounds: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return self.bounds[-1]

    def sequences(self) -> Iterator[slice]:
        """The tokens of each sequence."""
        return (slice(start, stop) for start, stop in pairwise(self.bounds))


def embed(checkpoint: Checkpoint, config: ModelConfig, sequences: Sequence[TokenSequence]) -> TokenTable:
    """Tokens and pictures as the first layer gets them, from the unquantized embedding and vision tower.

    UsageError for no sequences at all.
    """
    if not sequences:
        raise UsageError(
            "0 calibration sequences, at least 1 is needed",
            "second moments come from the tokens that run through the model",
            "give more samples, or use --method rtn, which needs none",
        )
    bounds = [0]
    for sequence in sequences:
        bounds.append(bounds[-1] + len(sequence.token_ids))
    num_tokens = bounds[-1]
    hidden = torch.empty(num_tokens, config.text.hidden_size)
    positions = torch.empty(3, num_tokens, dtype=torch.int64)
    is_vision = torch.empty(num_tokens, dtype=torch.bool)
    model = _outer_model(checkpoint, config)
    with torch.inference_mode():
        for sequence, (start, stop) in zip(sequences, pairwise(bounds), strict=True):
            prompt = Prompt.of(sequence.token_ids, sequence.patches, config)
            embedded = model.embed(prompt.token_ids)
            if sequence.patches:
                embedded[prompt.is_placeholder] = torch.cat(model.encode_images(sequence.patches))
            hidden[start:stop] = embedded
            positions[:, start:stop] = prompt.positions
            is_vision[start:stop] = prompt.is_vision
    return TokenTable(hidden, positions, is_vision, tuple(bounds))


def _outer_model(checkpoint: Checkpoint, config: ModelConfig) -> ErnieModel:
    """Embedding, vision tower and resampler in float32, without any decoder layer and without a head."""
    text = dataclasses.replace(config.text, num_hidden_layers=0, moe_layers=(), tie_word_embeddings=True)
    with init_empty_weights(include_buffers=True):
        model = ErnieModel(dataclasses.replace(config, text=text, quantization=None), PackedExperts({}))
    fill_parameters(model, checkpoint, "", torch.float32, torch.device("cpu"))
    return model.eval()
