"""Adapters as PEFT writes them: what they add to each of our weights, with PEFT's own merge as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local.adapters.low_rank import Adapter
from ernie_local.adapters.reader import read_adapter
from ernie_local.checkpoint.shapes import ExpectedShapes
from tests.adapters import save_random_adapter, weights_of
from tests.conftest import Oracle


def _train(oracle: Oracle, directory: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Save a random adapter; what PEFT's merge adds to each of our weights."""
    before = weights_of(oracle.model, oracle.config)
    config = oracle.config
    merged = save_random_adapter(oracle.model, directory, **options).merge_and_unload()
    added = {name: value - before[name] for name, value in weights_of(merged, config).items()}
    return {name: one for name, one in added.items() if one.any()}


def _agree(adapter: Adapter, added: dict[str, torch.Tensor]) -> None:
    assert set(adapter.weights) == set(added)
    for name, expected in added.items():
        torch.testing.assert_close(adapter.weights[name].weight(), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 7, "experts.down_proj": 2}, "alpha_pattern": {".*[12].*k_proj": 9}},
        {"alpha_pattern": {"down_proj": 2, "layers.1.mlp.text_moe.experts.gate_up_proj": 11}},
        {"target_parameters": ["experts.down_proj"], "target_modules": []},
        {"target_parameters": ["text_moe.experts.gate_up_proj"], "target_modules": ["qkv", "o_proj"]},
    ],
    ids=["plain", "rslora", "patterns", "alphas", "down", "gate-up"],
)
def test_an_adapter_adds_what_peft_merges(
    make_oracle: Callable[..., Oracle], tmp_path: Path, options: dict[str, Any]
) -> None:
    oracle = make_oracle()
    added = _train(oracle, tmp_path, **options)
    _agree(read_adapter(tmp_path, oracle.config), added)
    if not options:
        expected = ExpectedShapes(oracle.config)
        matrices = {name for name in expected.names() if len(expected.shape(name) or ()) == 2}
        assert set(added) == matrices - {"embed_tokens.weight"}


@pytest.mark.parametrize("seed", range(4))
def test_any_shape_of_model_can_be_adapted_in_every_matrix(
    make_random_oracle: Callable[[int], Oracle], tmp_path: Path, seed: int
) -> None:
    oracle = make_random_oracle(seed)
    added = _train(oracle, tmp_path)
    _agree(read_adapter(tmp_path, oracle.config), added)


def test_the_scale_that_is_asked_for_multiplies_the_adapter(
    make_oracle: Callable[..., Oracle], tmp_path: Path
) -> None:
    oracle = make_oracle()
    added = _train(oracle, tmp_path)
    halved = {name: -0.5 * one for name, one in added.items()}
    _agree(read_adapter(tmp_path, oracle.config, scale=-0.5), halved)
