"""Beside a GPU the embedding lies in RAM, unless it is the head as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.loading.build import build_without_experts
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.layers import Embedding
from tests.conftest import Oracle

DEVICE = torch.device("meta")  # stands for a GPU


def built(directory: Path, device: torch.device) -> ErnieModel:
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        return build_without_experts(checkpoint, config, torch.float32, device)


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_is_where_it_is_read(
    make_oracle: Callable[..., Oracle], tmp_path: Path, tied: bool
) -> None:
    make_oracle(seed=5, tied=tied).save(tmp_path, "hub")
    on_cpu, on_gpu = built(tmp_path, torch.device("cpu")), built(tmp_path, DEVICE)
    assert on_gpu.state_dict()["embed_tokens.weight"].is_cpu != tied
    others = {name: tensor for name, tensor in on_gpu.state_dict().items() if name != "embed_tokens.weight"}
    assert {tensor.device for tensor in others.values()} == {DEVICE}
    if not tied:
        assert isinstance(on_gpu.embed_tokens, Embedding)
        assert isinstance(on_cpu.embed_tokens, Embedding)
        assert torch.equal(on_gpu.embed_tokens.weight, on_cpu.embed_tokens.weight)
        for token_id in (0, 7):
            row = on_cpu.embed(torch.tensor([token_id]))
            assert torch.equal(on_cpu.embed_one(token_id), row)
            assert torch.equal(on_gpu.embed_tokens(torch.tensor([token_id])), row)
