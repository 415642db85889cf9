"""Choices sorted by expert and cut into tiles, against a slow count."""

from __future__ import annotations

import pytest
import torch

from ernie_local.kernels.triton.expert_parts import NO_EXPERT, group_tokens


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts"), [(1, 1, 1), (9, 6, 64), (200, 2, 5), (64, 6, 3)]
)
def test_every_choice_lies_in_one_tile_of_its_expert(num_tokens: int, top_k: int, num_experts: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.randint(num_experts, (num_tokens, top_k), generator=generator)
    groups = group_tokens(ids, num_experts, 16)
    flat = ids.flatten()
    found = []
    tiles = zip(
        groups.tile_experts.tolist(), groups.tile_firsts.tolist(), groups.tile_ends.tolist(), strict=True
    )
    for expert, first, end in tiles:
        if expert == NO_EXPERT:
            continue
        members = groups.sorted_choices[first : min(first + 16, end)]
        assert len(members)
        assert bool((flat[members] == expert).all())
        found += members.tolist()
    # By expert, then by token, and none twice.
    assert found == sorted(range(len(flat)), key=lambda choice: (int(flat[choice]), choice))
    assert groups.positions[groups.sorted_choices].tolist() == list(range(len(flat)))


def test_one_busy_expert_fills_tiles_of_its_own() -> None:
    groups = group_tokens(torch.full((40, 1), 2), 4, 16)
    assert groups.tile_experts.tolist() == [2, 2, 2, NO_EXPERT, NO_EXPERT, NO_EXPERT]
    assert groups.tile_firsts[:3].tolist() == [0, 16, 32]
    assert groups.tile_ends[:3].tolist() == [40, 40, 40]
