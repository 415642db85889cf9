"""Routed experts and the MoE block against plain loops over tokens and experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from ernie_local.config import Bank, TextConfig, parse_config
from ernie_local.experts.resident import ResidentExperts
from ernie_local.model.moe import MoEBlock, RoutedTokens, TokenRows

CPU = torch.device("cpu")


def make_config(**overrides: Any) -> TextConfig:
    text = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "moe_intermediate_size": [18, 7],
        "moe_k": 2,
        "moe_num_experts": 5,
        "moe_num_shared_experts": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        **overrides,
    }
    return parse_config({"model_type": "ernie4_5_vl_moe", "text_config": text}, "config.json").text


def make_experts(config: TextConfig, seed: int = 0) -> ResidentExperts:
    generator = torch.Generator().manual_seed(seed)
    experts = ResidentExperts(config, torch.float32, CPU)
    for bank in experts.banks.values():
        bank.gate_up.normal_(0, 0.3, generator=generator)
        bank.down.normal_(0, 0.3, generator=generator)
    return experts


def textbook(
    experts: ResidentExperts, bank: Bank, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    tensors = experts.banks[1, bank]
    inner = tensors.down.shape[-1]
    output = torch.zeros_like(hidden)
    for token in range(hidden.shape[0]):
        for expert_id, weight in zip(ids[token].tolist(), weights[token], strict=True):
            gate = tensors.gate_up[expert_id, :inner] @ hidden[token]
            up = tensors.gate_up[expert_id, inner:] @ hidden[token]
            output[token] += weight * (tensors.down[expert_id] @ (silu(gate) * up))
    return output


def random_choices(num_tokens: int, num_experts: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    weights, ids = scores.topk(top_k, dim=-1)
    return ids, weights


@pytest.mark.parametrize("num_tokens", [1, 2, 33])
@pytest.mark.parametrize("bank", ["text", "vision"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(5, 2), (7, 7), (1, 1), (16, 1)])
def test_resident_experts_match_plain_loops(
    num_tokens: int, bank: Bank, num_experts: int, top_k: int
) -> None:
    experts = make_experts(make_config(moe_num_experts=num_experts, moe_k=top_k))
    hidden = torch.randn(num_tokens, 24, generator=torch.Generator().manual_seed(5))
    ids, weights = random_choices(num_tokens, num_experts, top_k)
    expected = textbook(experts, bank, hidden, ids, weights)
    computed = experts.compute(RoutedTokens(1, bank, hidden, ids, weights))
    torch.testing.assert_close(computed, expected, atol=1e-5, rtol=1e-5)


def test_one_token_alone_equals_the_same_token_in_a_crowd() -> None:
    experts = make_experts(make_config(moe_num_experts=7, moe_k=4))
    hidden = torch.randn(12, 24, generator=torch.Generator().manual_seed(6))
    ids, weights = random_choices(12, 7, 4)
    together = experts.compute(RoutedTokens(1, "text", hidden, ids, weights))
    for token in range(12):
        row = slice(token, token + 1)
        alone = experts.compute(RoutedTokens(1, "text", hidden[row], ids[row], weights[row]))
        torch.testing.assert_close(alone, together[row], atol=1e-6, rtol=1e-5)


def test_projection_views_are_the_halves_that_compute_uses() -> None:
    config = make_config()
    experts = ResidentExperts(config, torch.float32, CPU)
    generator = torch.Generator().manual_seed(7)
    parts = {
        "gate_proj": torch.randn(18, 24, generator=generator),
        "up_proj": torch.randn(18, 24, generator=generator),
        "down_proj": torch.randn(24, 18, generator=generator),
    }
    for name, value in parts.items():
        view = experts.banks[1, "text"].projection(3, name)
        assert view.is_contiguous()
        view.copy_(value)
    hidden = torch.randn(1, 24, generator=generator)
    expected = (silu(hidden @ parts["gate_proj"].T) * (hidden @ parts["up_proj"].T)) @ parts["down_proj"].T
    computed = experts.compute(RoutedTokens(1, "text", hidden, torch.tensor([[3]]), torch.ones(1, 1)))
    torch.testing.assert_close(computed, expected)


def test_dense_layers_have_no_banks() -> None:
    config = make_config()  # layer 0 dense, layer 1 sparse
    experts = ResidentExperts(config, torch.bfloat16, CPU)
    assert set(experts.banks) == {(1, "text"), (1, "vision")}
    assert experts.num_bytes == 2 * 5 * 24 * 3 * (18 + 7)


@dataclass
class DictProvider:
    """An ExpertProvider that notes what it was asked and answers with a constant for each bank."""

    takes_shared_page = False
    has_exact_rows = False

    asked: list[tuple[int, Bank, int]] = field(default_factory=list)

    def begin(self, rows: TokenRows) -> None:
        pass

    def abort(self) -> None:
        pass

    def make_room(self, owner: object, num_bytes: int) -> None:
        pass

    def cache_memory(self) -> None:
        pass

    def compute(self, tokens: RoutedTokens) -> torch.Tensor:
        assert tokens.shared_page is None
        self.asked.append((tokens.layer_id, tokens.bank, tokens.hidden.shape[0]))
        return torch.full_like(tokens.hidden, 1.0 if tokens.bank == "text" else 2.0)


def make_block(config: TextConfig) -> MoEBlock:
    torch.manual_seed(0)
    block = MoEBlock(config, 1).requires_grad_(False)
    # The layers start unfilled, and no value among them is sure to be a number.
    for parameter in block.parameters():
        parameter.normal_(0, 0.3)
    return block


@pytest.mark.parametrize(
    ("is_vision", "asked"),
    [
        ([False, True, True, False, True], [(1, "text", 2), (1, "vision", 3)]),
        ([False] * 5, [(1, "text", 5)]),
        ([True] * 5, [(1, "vision", 5)]),
    ],
)
def test_each_token_goes_to_its_own_bank(is_vision: list[bool], asked: list[tuple[int, Bank, int]]) -> None:
    block, provider = make_block(make_config(moe_num_shared_experts=0)), DictProvider()
    mask = torch.tensor(is_vision)
    output = block(torch.randn(5, 24), TokenRows.of(mask, make_config().banks, CPU), provider)
    assert provider.asked == asked
    assert torch.equal(output, torch.where(mask, 2.0, 1.0)[:, None].expand(5, 24))


def test_shared_experts_see_every_token_once() -> None:
    block, provider = make_block(make_config(moe_num_shared_experts=3)), DictProvider()
    assert block.shared_experts is not None
    gate_proj = block.shared_experts.gate_proj
    assert isinstance(gate_proj, torch.nn.Linear)
    assert gate_proj.out_features == 3 * 18
    hidden = torch.randn(4, 24)
    mask = torch.tensor([False, True, False, True])
    output = block(hidden, TokenRows.of(mask, make_config().banks, CPU), provider)
    expected = block.shared_experts(hidden) + torch.where(mask, 2.0, 1.0)[:, None]
    torch.testing.assert_close(output, expected)


def test_hook_sees_each_choice_with_its_row() -> None:
    block, seen = make_block(make_config()), {}

    def record(
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        for row, chosen in zip(token_indices.tolist(), expert_ids.tolist(), strict=True):
            seen[row] = (layer_id, bank, chosen)

    hidden = torch.randn(4, 24)
    is_vision = torch.tensor([True, False, False, True])
    block(hidden, TokenRows.of(is_vision, make_config().banks, CPU), DictProvider(), record)
    assert sorted(seen) == [0, 1, 2, 3]
    assert seen[3] == (1, "vision", block.routers["vision"](hidden[3:])[0][0].tolist())
    assert seen[1] == (1, "text", block.routers["text"](hidden[1:2])[0][0].tolist())
