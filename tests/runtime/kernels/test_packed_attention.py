"""The attention half of a decoded token's layer in one call, and shared experts beside the routed ones."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ernie_local.errors import ErnieLocalError
from ernie_local.kernels import native, reference
from ernie_local.kernels.arguments import ExpertsCall, LayerStorage, LowRankParts, PackedAttentionCall
from ernie_local.kernels.attention import attention_in_parts, packed_attention
from ernie_local.kernels.experts import packed_experts
from ernie_local.kernels.low_rank import in_tiles
from ernie_local.loading import load
from ernie_local.model.attention import SelfAttention
from ernie_local.packing import pack_matrix, pack_page
from tests.runtime.random_matrices import random_matrix, random_page

HIDDEN_SIZE, CAPACITY = 80, 12
ADDED_NAMES = [f"{matrix}_{field}" for matrix in ("qkv", "o") for field in LowRankParts._fields]
CACHES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments(
    heads: int = 4, kv_heads: int = 2, head_dim: int = 16, cache: str = "bfloat16"
) -> dict[str, Any]:
    query_size, key_size = heads * head_dim, kv_heads * head_dim
    states = [randn(kv_heads, CAPACITY, head_dim, seed=seed) for seed in (3, 4)]
    scales: list[torch.Tensor | None] = [None, None]
    if cache == "int8":
        states = [torch.round(30 * state) for state in states]
        scales = [torch.rand(kv_heads, CAPACITY, 1), torch.rand(kv_heads, CAPACITY, 1)]
    return {
        "hidden": randn(1, HIDDEN_SIZE),
        "norm": randn(HIDDEN_SIZE, seed=1),
        "eps": 1e-5,
        "qkv": pack_matrix(random_matrix("w8", query_size + 2 * key_size, HIDDEN_SIZE)),
        "qkv_format": "w8",
        "o": pack_matrix(random_matrix("w4", HIDDEN_SIZE, query_size)),
        "o_format": "w4",
        "heads": heads,
        "cosines": randn(1, head_dim // 2, seed=5).cos(),
        "sines": randn(1, head_dim // 2, seed=5).sin(),
        **dict.fromkeys(ADDED_NAMES, ()),
        "cached_keys": states[0].to(CACHES[cache]),
        "cached_values": states[1].to(CACHES[cache]),
        "key_scales": scales[0],
        "value_scales": scales[1],
        "length": 7,
    }


def with_adapters(call: dict[str, Any]) -> dict[str, Any]:
    """With parts of queries and values alone, as adapters often have them, and of the whole output."""
    heads, (kv_heads, _, head_dim) = call["heads"], call["cached_keys"].shape
    query_size, key_size = heads * head_dim, kv_heads * head_dim
    qkv = [(0, query_size, 3), (query_size + key_size, key_size, 5)]
    parts = {"qkv": (HIDDEN_SIZE, qkv), "o": (query_size, [(0, HIDDEN_SIZE, 4)])}
    added: dict[str, Any] = {}
    for name, (columns, rows) in parts.items():
        added[f"{name}_inward"] = [(randn(rank, columns) / 32).bfloat16() for _, _, rank in rows]
        added[f"{name}_outward"] = [in_tiles(randn(count, rank).bfloat16()) for _, count, rank in rows]
        added[f"{name}_first_rows"] = [first for first, _, _ in rows]
        added[f"{name}_num_rows"] = [count for _, count, _ in rows]
    return call | added


def copied(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in call.items()}


def grouped(
    call: dict[str, Any],
) -> tuple[PackedAttentionCall, LayerStorage, int, LowRankParts, LowRankParts]:
    """As the operator takes them."""
    flat = list(call.values())
    qkv_added, o_added = LowRankParts(*flat[10:14]), LowRankParts(*flat[14:18])
    return PackedAttentionCall(*flat[:10]), LayerStorage(*flat[18:22]), flat[22], qkv_added, o_added


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (1, 1, 16), (5, 1, 32), (8, 4, 48)])
@torch.no_grad()  # with gradients add_low_rank is torch's
def test_one_call_is_its_five_parts(
    kernels: ModuleType, heads: int, kv_heads: int, head_dim: int, cache: str, adapted: bool
) -> None:
    call = arguments(heads, kv_heads, head_dim, cache)
    if adapted:
        plain = packed_attention(*grouped(copied(call)))
        call = with_adapters(call)
        assert not torch.allclose(packed_attention(*grouped(copied(call))), plain, rtol=0.1, atol=0.1)
    for length in (0, 7, CAPACITY - 1):
        apart = copied(call | {"length": length})
        together = copied(apart)
        torch.testing.assert_close(
            packed_attention(*grouped(together)), attention_in_parts(*grouped(apart)), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(together["cached_keys"], apart["cached_keys"])
        assert torch.equal(together["cached_values"], apart["cached_values"])
        assert not torch.equal(together["cached_keys"], call["cached_keys"])


@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
@pytest.mark.parametrize("adapted", [False, True])
def test_it_means_what_torch_computes(
    monkeypatch: pytest.MonkeyPatch, native_kernels: ModuleType, adapted: bool
) -> None:
    call = with_adapters(arguments()) if adapted else arguments()
    fast = packed_attention(*grouped(copied(call)))
    monkeypatch.setattr(native, "find_module", lambda: (None, "to compute with exact activations"))
    exact = packed_attention(*grouped(copied(call)))
    assert (fast - exact).norm() < 2e-2 * (exact - call["hidden"]).norm()


def test_it_keeps_the_rules_of_torch() -> None:
    for call in (arguments(), with_adapters(arguments())):
        torch.library.opcheck(torch.ops.ernie_local.packed_attention, tuple(call.values()))
    slots = torch.stack([pack_page(random_page("w4", "w4", 64, 64, seed)) for seed in range(3)])
    chosen = (randn(2, 64), slots[:2], torch.tensor([[0], [1]]), torch.ones(2, 1), slots[2:])
    torch.library.opcheck(torch.ops.ernie_local.packed_experts, chosen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.full((1, HIDDEN_SIZE), torch.nan)}, "tokens holds a NaN or an infinity in token 0"),
        ({"hidden": torch.ones(1, 64)}, "norm|weight"),
        ({"hidden": torch.ones(2, HIDDEN_SIZE)}, r"hidden is \(2, 80\) .* wanted \(1, hidden_size\)"),
        ({"cached_keys": torch.ones(CAPACITY, 16)}, r"cached_keys \(12, 16\)"),
        ({"qkv": torch.zeros(64, dtype=torch.uint8)}, "a w8 matrix of 128 x 80 takes"),
        ({"o": torch.zeros(64, dtype=torch.uint8)}, "a w4 matrix of 80 x 64 takes"),
        ({"qkv_format": "w5"}, "'w5' is not one of the formats"),
        ({"cosines": torch.ones(1, 4)}, r"cosines is torch.float32 \(4,\), wanted torch.float32 \(8,\)"),
        ({"length": CAPACITY}, "length"),
        ({"length": -1}, "length"),
        ({"heads": 3}, "takes"),
        ({"key_scales": torch.ones(2, CAPACITY, 1)}, "scales"),
        ({"qkv_inward": [torch.ones(3, 64).bfloat16()] * 2}, r"inward is torch.bfloat16 \(3, 64\)"),
        ({"qkv_first_rows": [0, 112]}, r"for rows 112 to 143 of 128"),
        ({"o_outward": [torch.ones(4, 4, 16).bfloat16()]}, r"outward torch.bfloat16 \(4, 4, 16\)"),
    ],
)
def test_it_refuses_what_its_parts_refuse(changes: dict[str, Any], message: str) -> None:
    call = with_adapters(arguments()) | changes
    before = copied(call)
    with pytest.raises(ErnieLocalError, match=message):
        packed_attention(*grouped(call))
    visible = slice(0, before["length"])
    assert torch.equal(call["cached_values"][:, visible], before["cached_values"][:, visible])


@pytest.mark.parametrize("num_tokens", [1, 5, 20])
def test_a_shared_page_is_one_more_expert(kernels: ModuleType, num_tokens: int) -> None:
    slots = torch.stack([pack_page(random_page("w4", "w2", 64, 48, seed)) for seed in range(4)])
    shared = pack_page(random_page("w8", "w8", 64, 96, 9))[None]
    hidden, weights = randn(num_tokens, 64), torch.rand(num_tokens, 2)
    ids = torch.rand(num_tokens, 4).topk(2).indices
    everyone = torch.zeros(num_tokens, 1, dtype=torch.int64)
    apart = packed_experts(ExpertsCall(hidden, slots, ids, weights))
    apart += packed_experts(ExpertsCall(hidden, shared, everyone, torch.ones(num_tokens, 1)))
    together = packed_experts(ExpertsCall(hidden, slots, ids, weights, shared))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    exact = reference.plain_experts(ExpertsCall(hidden, slots, ids, weights, shared))
    assert (together - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (torch.zeros(1, 4096, dtype=torch.uint8), "shared_page holds no page of hidden size 64 in full"),
        (torch.zeros(2, 4096, dtype=torch.uint8), r"shared_page is torch.uint8 \(2, 4096\)"),
        (torch.zeros(1, 4096), r"shared_page is torch.float32 \(1, 4096\)"),
        (torch.zeros(4096, dtype=torch.uint8), r"shared_page is torch.uint8 \(4096,\)"),
    ],
)
def test_a_shared_page_of_no_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, with_native: bool, shared: torch.Tensor, message: str
) -> None:
    if with_native and native.native_module() is None:
        pytest.skip("the native module was not built here")
    if not with_native:
        monkeypatch.setattr("ernie_local.kernels.operators.native_module", lambda: None)
        monkeypatch.setattr("ernie_local.kernels.operators.warn_without_native", lambda: None)
    slots = pack_page(random_page("w4", "w4", 64, 64))[None]
    with pytest.raises(ErnieLocalError, match=message):
        packed_experts(
            ExpertsCall(torch.ones(1, 64), slots, torch.zeros(1, 1).long(), torch.ones(1, 1), shared)
        )


def test_a_model_decodes_the_same_in_one_call_and_in_parts(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch, native_kernels: ModuleType
) -> None:
    model = load(packed_nano)

    def decode() -> torch.Tensor:
        engine = model.engine(context_size=40)
        engine.prefill([20, 21, 22, 23])
        return torch.stack([engine.decode(token_id) for token_id in range(30, 38)])

    calls: list[int] = []

    def counted(*given: Any) -> torch.Tensor:
        calls.append(1)
        return packed_attention(*given)

    monkeypatch.setattr("ernie_local.model.attention.packed_attention", counted)
    together = decode()
    assert len(calls) == 8 * model.config.text.num_hidden_layers
    monkeypatch.setattr(SelfAttention, "packed_projections", None)
    apart = decode()
    assert len(calls) == 8 * model.config.text.num_hidden_layers
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4 * float(apart.abs().max()))
