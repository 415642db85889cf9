"""Choices sorted by expert, and cut into tiles of one expert each. Plain torch, on any device.

Every shape follows from the shapes that come in, so that a GPU never has to tell the host a number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NO_EXPERT = -1  # of a tile beyond the last one


@dataclass(frozen=True, slots=True)
class TokenGroups:
    """Choices are counted token by token: choice `token * top_k + i`. All int64."""

    sorted_choices: torch.Tensor  # (choices,) by expert, then by token
    positions: torch.Tensor  # (choices,) where each choice lies among the sorted ones
    tile_experts: torch.Tensor  # (tiles,)
    tile_firsts: torch.Tensor  # (tiles,) the tile's first sorted choice
    tile_ends: torch.Tensor  # (tiles,) where its expert's choices end


def group_tokens(expert_ids: torch.Tensor, num_experts: int, tile_tokens: int) -> TokenGroups:
    """expert_ids: (tokens, top_k) int64, below `num_experts`; tile_tokens: of a tile at most."""
    flat = expert_ids.flatten()
    sorted_ids, sorted_choices = flat.sort(stable=True)
    every = torch.arange(num_experts + 1, device=flat.device)
    bounds = torch.searchsorted(sorted_ids, every)  # (experts + 1,) first choice of each
    tiles_before = ((bounds.diff() + tile_tokens - 1) // tile_tokens).cumsum(0)  # (experts,) and of its own
    num_tiles = len(flat) // tile_tokens + min(num_experts, len(flat))
    tiles = torch.arange(num_tiles, device=flat.device)
    experts = torch.searchsorted(tiles_before, tiles, right=True)  # num_experts beyond the last tile
    known = experts.clamp(max=num_experts - 1)
    own_tiles = (bounds[known + 1] - bounds[known] + tile_tokens - 1) // tile_tokens
    index = tiles - (tiles_before[known] - own_tiles)  # of the tile among its expert's
    positions = torch.empty_like(sorted_choices)
    positions[sorted_choices] = torch.arange(len(flat), device=flat.device)
    return TokenGroups(
        sorted_choices=sorted_choices,
        positions=positions,
        tile_experts=torch.where(experts < num_experts, experts, NO_EXPERT),
        tile_firsts=bounds[known] + index * tile_tokens,
        tile_ends=bounds[known + 1],
    )
