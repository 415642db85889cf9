"""What can be chosen about paging: small pages for experts of little weight, and the rule for misses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import UsageError
from ernie_local.experts.options import COMPUTE, FETCH, SPLIT, MissRule, PagingOptions
from ernie_local.experts.paged import PagedExperts
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.moe import RoutedTokens, TokenRows
from tests.conftest import PackNano
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import build, gpu_share, paged_experts, plan_of, room

CONFIG = read_config(NANO_DIRECTORY)
TOP_K = CONFIG.text.experts_per_token
ONE_TOKEN = TokenRows({"text": torch.tensor([0])})


@pytest.fixture(scope="module")
def dual(pack_nano: PackNano) -> Path:
    return pack_nano(FormatChoice("w4", small_experts="w2"))


@pytest.fixture(scope="module")
def small(pack_nano: PackNano) -> Path:
    """The small pages of `dual` as a checkpoint of its own."""
    return pack_nano(FormatChoice("w2"))


@cache
def room_in(directory: Path) -> int:
    return room(build(directory, None))


def least(directory: Path, options: PagingOptions, on_gpu: bool = False) -> tuple[ErnieModel, PagedExperts]:
    """A model with memory for hardly more than a token's experts and a conversation."""
    memory = 2 * plan_of(directory).least_bytes
    if on_gpu:
        model = build(directory, memory, options, gpu_share(directory, FakeGpu(), memory))
    else:
        model = build(directory, memory + room_in(directory), options)
    return model, paged_experts(model)


def tokens(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """States, choices and weights of ten tokens, the weights of each falling."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(10):
        hidden = torch.randn(1, CONFIG.text.hidden_size, generator=generator)
        ids = torch.randperm(CONFIG.text.banks[0].num_experts, generator=generator)[:TOP_K][None]
        weights = torch.rand(1, TOP_K, generator=generator).softmax(-1).sort(descending=True).values
        yield hidden, ids, weights


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("below", [0.0, 0.25, 1.1])
def test_missing_experts_of_little_weight_are_served_by_small_pages(
    dual: Path, small: Path, below: float, gpu: bool
) -> None:
    four, two = build(dual, None).experts, build(small, None).experts
    _, experts = least(dual, PagingOptions(small_below=below), gpu)
    layer_id = CONFIG.text.moe_layers.index(True)
    num_small = 0
    for hidden, ids, weights in tokens(1):
        there = {*experts.top.cache.keys(), *experts.ram.cache.keys()}
        experts.begin(ONE_TOKEN)
        computed = experts.compute(RoutedTokens(layer_id, "text", hidden, ids, weights))
        expected = torch.zeros_like(hidden)
        for expert_id, weight in sorted(zip(ids[0].tolist(), weights[0].tolist(), strict=True)):
            is_there = any(key[:3] == (layer_id, "text", expert_id) and not key.is_small for key in there)
            is_small = weight < below and not is_there
            num_small += is_small
            provider = two if is_small else four
            one = torch.tensor([[expert_id]])
            only = RoutedTokens(layer_id, "text", hidden, one, torch.tensor([[weight]]))
            expected += provider.compute(only)
        assert torch.equal(computed, expected)
    assert experts.stats.small_pages_used == num_small
    assert (num_small > 0) == (below > 0)


def test_sequences_are_not_joined_with_small_pages(dual: Path) -> None:
    assert least(dual, PagingOptions())[0].joins_sequences
    assert not least(dual, PagingOptions(small_below=0.1))[0].joins_sequences


def test_small_pages_save_reading(dual: Path) -> None:
    read = []
    for below in (None, 1.1):
        model, experts = least(dual, PagingOptions(small_below=below))
        engine = Engine(model, 100)
        engine.prefill([50, 51, 52])
        for token in range(60, 80):
            engine.decode(token)
        read.append(experts.stats.decode_bytes_read)
    assert read[1] < 0.8 * read[0]


def test_a_checkpoint_without_small_pages_is_refused(small: Path) -> None:
    with pytest.raises(UsageError, match="has 0 of them"):
        ernie_local.load(small, small_below=0.1)


@pytest.mark.parametrize(
    ("rule", "counts"), [(FETCH, [0, 1, 2, 3]), (COMPUTE, [0, 0, 0, 0]), (SPLIT, [0, 0, 1, 1])]
)
def test_a_rule_says_how_many_pages_are_copied(rule: MissRule, counts: list[int]) -> None:
    assert [rule.num_to_copy(missing) for missing in range(4)] == counts
