"""The router against the formula spelled out token by token, and against transformers' own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ernie_local.model.moe import Router


def make_router(num_experts: int, top_k: int, seed: int = 0, norm_min: float = 1e-12) -> Router:
    generator = torch.Generator().manual_seed(seed)
    router = Router(16, num_experts, top_k, norm_min)
    router.weight.data = torch.randn(num_experts, 16, generator=generator)
    router.bias.data = torch.randn(num_experts, generator=generator) * 0.3
    return router.requires_grad_(False)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (7, 3), (5, 5), (1, 1), (64, 6)])
def test_choice_by_score_plus_bias_weight_by_score_alone(num_experts: int, top_k: int) -> None:
    router = make_router(num_experts, top_k)
    hidden = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    expert_ids, weights = router(hidden)
    for token in range(20):
        raw = [float(row @ hidden[token]) for row in router.weight]
        exponentials = [math.exp(value - max(raw)) for value in raw]
        scores = [value / sum(exponentials) for value in exponentials]
        biased = [score + float(bias) for score, bias in zip(scores, router.bias, strict=True)]
        chosen = sorted(range(num_experts), key=lambda index: -biased[index])[:top_k]
        assert expert_ids[token].tolist() == chosen
        total = sum(scores[index] for index in chosen)
        expected = [scores[index] / total for index in chosen]
        assert weights[token].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (7, 4), (64, 6)])
def test_bit_equal_to_transformers(dtype: torch.dtype, num_experts: int, top_k: int) -> None:
    from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe as theirs

    class Config:
        hidden_size, moe_norm_min = 16, 1e-12

    config: Any = Config()
    config.num_experts, config.num_experts_per_tok = num_experts, top_k
    oracle: Any = theirs.Ernie4_5_VLMoeMoeTopKRouter(config)
    router = make_router(num_experts, top_k, seed=3)
    oracle.weight.data = router.weight.data
    oracle.moe_statics.e_score_correction_bias.data = router.bias.data[None]
    hidden = torch.randn(50, 16, generator=torch.Generator().manual_seed(4)).to(dtype)
    expert_ids, weights = router(hidden)
    with torch.no_grad():
        _, their_weights, their_ids = oracle(hidden)
    assert torch.equal(expert_ids, their_ids)
    assert torch.equal(weights, their_weights)
    assert weights.dtype == dtype


def test_scores_too_small_to_divide_by_are_held_up_by_the_floor() -> None:
    router = make_router(4, 1, norm_min=10.0)
    _, weights = router(torch.zeros(1, 16))
    assert weights.item() == pytest.approx(0.25 / 10.0)
