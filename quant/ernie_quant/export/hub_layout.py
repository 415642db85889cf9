"""Says which tensors a checkpoint in the hub's layout has, and from which of ours each is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_local.checkpoint.index import stored_shape
from ernie_local.checkpoint.names import Part, map_name, name_in_file
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ModelConfig
from ernie_quant.export.weights import SourceWeights

_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class HubTensor:
    """A tensor of the hub's layout. parts: ours that it is made of, as `map_name` has them."""

    name: str
    parts: tuple[Part, ...]
    shape: tuple[int, ...]

    @property
    def is_router(self) -> bool:
        """Whether it decides which experts a token meets: routers and their biases are float32."""
        return "_router." in self.parts[0].name

    @property
    def dtype(self) -> torch.dtype:
        """As in the published files."""
        return torch.float32 if self.is_router else torch.bfloat16

    def values(self, source: SourceWeights) -> Iterator[Tensor]:
        """Its numbers in `dtype`, in consecutive pieces of the file's order."""
        for part in self.parts:
            if part.transposed:
                yield source.whole(part.name, self.dtype).t().contiguous()  # (hidden, experts)
            else:
                yield from source.blocks(part.name, self.dtype)


def hub_tensors(config: ModelConfig) -> list[HubTensor]:
    """All tensors of a model with this config.

    As in the published files, a tied head is there too where the model reads images, and else it is not.
    """
    expected, banks = ExpectedShapes(config), config.text.banks
    found: dict[str, HubTensor] = {}
    for ours in expected.names():
        name = name_in_file(ours, "hub", banks)
        if name not in found:
            parts, shape = map_name(name, banks), expected.shape(ours)
            assert shape is not None, ours
            assert ours == parts[0].name, (ours, name)
            found[name] = HubTensor(name, parts, stored_shape(parts, shape))
    if config.text.tie_word_embeddings and config.reads_images:
        embedding = expected.shape(_EMBEDDING)
        assert embedding is not None
        found[_HEAD] = HubTensor(_HEAD, (Part(_EMBEDDING),), embedding)
    return list(found.values())
