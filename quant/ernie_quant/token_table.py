"""All calibration tokens of all sequences: where they stand, and how they get their first hidden states.

Owns positions and the bounds of the sequences; hidden states lie in files. Knows nothing of layers or of
quantizing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.loading.build import build_embedder
from ernie_local.media.patches import Patches
from ernie_local.media.prompt import MediaPrompt
from ernie_quant.row_file import RowFile


class TokenSequence(Protocol):
    """Ids with placeholders expanded, and the images that they stand for."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """(tokens,)."""
        ...

    @property
    def patches(self) -> tuple[Patches, ...]:
        """In the order of the placeholders."""
        ...


@dataclass(frozen=True, slots=True)
class TokenTable:
    """positions: (3, tokens) int64; is_vision: (tokens,) bool; bounds: first token of each sequence, and the
    number of all."""

    positions: torch.Tensor
    is_vision: torch.Tensor
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], config: ModelConfig) -> TokenTable:
        """UsageError for no sequences at all."""
        if not sequences:
            raise UsageError(
                "0 calibration sequences, at least 1 is needed",
                "second moments come from the tokens that run through the model",
                f"give more samples, or use {parameter('method', 'rtn')}, which needs none",
            )
        prompts = [MediaPrompt.of(sequence.token_ids, sequence.patches, config) for sequence in sequences]
        bounds = [0]
        for sequence in sequences:
            bounds.append(bounds[-1] + len(sequence.token_ids))
        return cls(
            torch.cat([prompt.positions for prompt in prompts], dim=1),
            torch.cat([prompt.is_vision for prompt in prompts]),
            tuple(bounds),
        )

    def repeated(self, times: int) -> TokenTable:
        """The same sequences so many times, one after the other."""
        bounds = [0]
        for number in range(times):
            bounds.extend(number * self.num_tokens + bound for bound in self.bounds[1:])
        return TokenTable(self.positions.repeat(1, times), self.is_vision.repeat(times), tuple(bounds))

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return self.bounds[-1]

    def sequences(self) -> Iterator[slice]:
        """The tokens of each sequence."""
        return (slice(start, stop) for start, stop in pairwise(self.bounds))


@torch.inference_mode()
def embed(
    checkpoint: Checkpoint,
    config: ModelConfig,
    sequences: Sequence[TokenSequence],
    table: TokenTable,
    states: RowFile,
    first: int = 0,
) -> Iterator[int]:
    """Write what the first layer gets into `states`, by the embedding and tower of `checkpoint`.

    Begins with the `first` sequence. Yields the number of tokens done after each.
    """
    model = build_embedder(checkpoint, config)
    for sequence, tokens in list(zip(sequences, table.sequences(), strict=True))[first:]:
        prompt = MediaPrompt.of(sequence.token_ids, sequence.patches, config)
        embedded = model.embed(prompt.token_ids)
        if sequence.patches:
            embedded[prompt.is_placeholder] = torch.cat(model.encode_images(sequence.patches))
        states.write(tokens, embedded)
        yield tokens.stop
