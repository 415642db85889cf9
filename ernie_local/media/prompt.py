"""Describes a prompt for the model: token ids with their positions, banks and placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ernie_local.config import ModelConfig
from ernie_local.media.patches import Patches
from ernie_local.media.tokens import TEXT, VisionRule, positions_3d, token_types


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """New tokens with all that the model needs to know of them, checked, on the host, nothing computed."""

    token_ids: torch.Tensor  # (tokens,) int64
    positions: torch.Tensor  # (3, tokens) int64, rows T, H, W
    is_vision: torch.Tensor  # (tokens,) bool
    is_placeholder: torch.Tensor  # (tokens,) bool: the embedding is replaced by an image's feature
    next_position: int

    @property
    def num_tokens(self) -> int:
        """How many there are."""
        return int(self.token_ids.shape[0])

    @classmethod
    def of(
        cls,
        token_ids: Sequence[int],
        images: Sequence[Patches],
        config: ModelConfig,
        vision_rule: VisionRule = "tags",
        start: int = 0,
    ) -> MediaPrompt:
        """Placeholders are expanded already; start: the position of the first token.

        UsageError if placeholders and images disagree.
        """
        positions, next_position = positions_3d(
            token_ids,
            [image.grid for image in images],
            config.media,
            config.vision.spatial_merge_size,
            start,
            temporal_merge=config.vision.temporal_merge_size,
        )
        tensor = torch.tensor(token_ids, dtype=torch.int64)
        placeholder_ids = torch.tensor([config.media.image, config.media.video])
        return cls(
            token_ids=tensor,
            positions=positions,
            is_vision=token_types(token_ids, config.media, vision_rule) != TEXT,
            is_placeholder=torch.isin(tensor, placeholder_ids),
            next_position=next_position,
        )
