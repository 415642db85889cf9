"""Norm, router and attention of a decoded token against plain torch, with every instruction set there is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

from ernie_local.config import parse_config
from ernie_local.kernels import reference
from ernie_local.kernels.arguments import NewToken
from ernie_local.kernels.attention import decode_attention
from ernie_local.kernels.norm_route import rms_norm, route
from ernie_local.kernels.operators import suits_decode_ops
from ernie_local.model.kv_cache import KV_DTYPES, KVCache
from ernie_local.model.layers import RMSNorm
from ernie_local.model.moe import Router
from ernie_local.model.rope import rotate_pairs
from tests.runtime.decode_cases import Case, assert_close, make_case, randn

CPU = torch.device("cpu")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 100, 160, 2560])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_norm_is_torchs(kernels: ModuleType, num_tokens: int, size: int, num_threads: int) -> None:
    hidden, weight = randn(num_tokens, size), randn(size, seed=1)
    hidden[:, size // 2] *= 50
    with threads(num_threads):
        assert_close(rms_norm(hidden, weight, 1e-5), reference.plain_rms_norm(hidden, weight, 1e-5))


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-3, 1e15, 1e30, math.nan, math.inf, -math.inf])
def test_norm_of_extreme_tokens(kernels: ModuleType, value: float) -> None:
    """A mean square below eps, one that overflows, tokens that are no numbers; their neighbour is well."""
    hidden, weight = randn(3, 40), randn(40, seed=1)
    hidden[1, 5:25] = value
    hidden[2] = value
    actual = rms_norm(hidden, weight, 1e-5)
    for row, expected in zip(actual, reference.plain_rms_norm(hidden, weight, 1e-5), strict=True):
        assert_close(row, expected)
    assert actual[0].isfinite().all()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 16, 23])
@pytest.mark.parametrize(
    ("hidden_size", "num_experts", "top_k"),
    [(16, 1, 1), (24, 5, 5), (17, 7, 3), (160, 64, 6), (2560, 64, 6), (3, 130, 8)],
)
def test_route_is_torchs(
    kernels: ModuleType, hidden_size: int, num_experts: int, top_k: int, num_tokens: int, num_threads: int
) -> None:
    hidden = randn(num_tokens, hidden_size)
    weight = randn(num_experts, hidden_size, seed=1) / hidden_size**0.5
    bias = randn(num_experts, seed=2) / num_experts
    with threads(num_threads):
        expert_ids, weights = route(hidden, weight, bias, top_k, 1e-12)
    expected_ids, expected_weights = reference.plain_route(hidden, weight, bias, top_k, 1e-12)
    assert expert_ids.dtype == torch.int64
    assert torch.equal(expert_ids, expected_ids)
    assert_close(weights, expected_weights)


def test_route_of_extreme_scores(kernels: ModuleType) -> None:
    """Logits far beyond the range of exp, and a bias that bars an expert."""
    hidden, weight = randn(4, 32) * 1e4, randn(9, 32, seed=1)
    bias = torch.zeros(9)
    bias[3] = -torch.inf
    expert_ids, weights = route(hidden, weight, bias, 8, 1e-12)
    expected_ids, expected_weights = reference.plain_route(hidden, weight, bias, 8, 1e-12)
    assert torch.equal(expert_ids, expected_ids)
    assert not (expert_ids == 3).any()
    assert_close(weights, expected_weights)


def test_route_holds_up_small_sums_by_the_floor(kernels: ModuleType) -> None:
    _, weights = route(torch.zeros(1, 16), torch.zeros(4, 16), torch.zeros(4), 1, 10.0)
    assert weights.item() == pytest.approx(0.25 / 10.0)


def test_of_equal_experts_the_lower_id_comes_first(kernels: ModuleType) -> None:
    bias = torch.zeros(20)
    bias[[4, 11]] = 0.5
    expert_ids, weights = route(torch.zeros(2, 16), torch.ones(20, 16), bias, 5, 1e-12)
    assert expert_ids.tolist() == [[4, 11, 0, 1, 2]] * 2
    assert weights.tolist() == [[pytest.approx(0.2)] * 5] * 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_route_of_what_is_no_number_stays_within_the_bank(kernels: ModuleType, value: float) -> None:
    hidden, weight, bias = randn(3, 32), randn(9, 32, seed=1), randn(9, seed=2) / 9
    hidden[1, 4] = value
    expert_ids, weights = route(hidden, weight, bias, 4, 1e-12)
    _, expected = reference.plain_route(hidden, weight, bias, 4, 1e-12)
    assert weights[1].isnan().all()
    assert_close(weights, expected)
    for chosen in expert_ids.tolist():
        assert len(set(chosen)) == 4
        assert all(0 <= expert_id < 9 for expert_id in chosen)


def check(case: Case) -> torch.Tensor:
    """The result is the reference's, and so is every bit of the cache."""
    expected_case = case.copy()
    actual = decode_attention(*case.arguments)
    expected = reference.plain_attention(*expected_case.arguments)
    assert_close(actual, expected)
    for one, other in zip(case.cache, expected_case.cache, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    return actual


@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(20, 4, 128), (4, 4, 16), (6, 2, 64), (5, 1, 80), (1, 1, 2), (12, 1, 96), (14, 2, 22), (3, 3, 8)],
)
def test_attention_is_torchs(
    kernels: ModuleType, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    for length, capacity in ((0, 1), (0, 5), (1, 2), (3, 9), (64, 65), (255, 300), (256, 257), (700, 1000)):
        check(make_case(heads, kv_heads, head_dim, dtype, length, capacity))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
def test_long_contexts_and_any_number_of_threads(
    kernels: ModuleType, dtype: torch.dtype, num_threads: int
) -> None:
    with threads(num_threads):
        check(make_case(6, 2, 32, dtype, 5000, 5001))
        assert kernels.num_threads() == num_threads


@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
def test_one_token_after_the_other_is_what_the_cache_appends(kernels: ModuleType, dtype: torch.dtype) -> None:
    """From an empty cache on, bit for bit as KVCache rounds; loud, silent and tiny states among them."""
    text = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    config = parse_config({"model_type": "ernie4_5_vl_moe", "text_config": text}, "config.json").text
    ours, theirs = KVCache(config, 9, dtype, CPU), KVCache(config, 9, dtype, CPU)
    for token, factor in enumerate((1.0, 0.0, 3e4, 1e-6, 1e-38, 1e-42, 0.3, 2.5, 1e-8)):
        new_keys, new_values = (randn(3, 8, seed=10 * token + index) * factor for index in range(2))
        angles = randn(1, 4, seed=token)
        cosines, sines = angles.cos(), angles.sin()
        new_token = NewToken(randn(6, 8), new_keys, new_values, cosines[0], sines[0])
        decode_attention(new_token, ours.storage(1), ours.length)
        theirs.append(1, rotate_pairs(new_keys[None], cosines, sines), new_values[None])
        for one, other in zip(ours.storage(1), theirs.storage(1), strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert torch.equal(one[:, : token + 1], other[:, : token + 1])
        ours.advance(1)
        theirs.advance(1)


@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
def test_scores_beyond_the_range_of_exp(kernels: ModuleType, dtype: torch.dtype) -> None:
    """The greatest score last, in the middle and first: the running maximum must bring all to one measure."""
    for loudest in (0, 300, 699, 700):
        case = make_case(4, 2, 32, dtype, 700, 701)
        case.queries.mul_(300)
        if loudest < 700:
            case.cached_keys[:, loudest] *= 1 if dtype == torch.int8 else 8
        else:
            case.keys.mul_(8)
        assert check(case).isfinite().all()


@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
def test_equal_scores_give_the_mean(kernels: ModuleType, dtype: torch.dtype) -> None:
    case = make_case(4, 2, 32, dtype, 600, 601)
    case.queries.zero_()
    exact = case.cached_values.float() * (1 if case.value_scales is None else case.value_scales)
    actual = check(case)
    mean = (exact[:, :600].sum(1) + case.values) / 601
    assert (actual.view(2, 2, 32) - mean[:, None]).abs().max() < 1e-4


@pytest.mark.parametrize("where", ["queries", "keys", "values", "cached_keys", "cached_values"])
@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
def test_a_nan_spoils_the_heads_that_see_it_and_no_other(
    kernels: ModuleType, dtype: torch.dtype, where: str
) -> None:
    case = make_case(6, 3, 32, dtype, 400, 401)
    if dtype == torch.int8 and where.startswith("cached"):
        scales = case.key_scales if where == "cached_keys" else case.value_scales
        assert scales is not None
        scales[1, 200] = torch.nan
    elif where.startswith("cached"):
        getattr(case, where)[1, 200, 5] = torch.nan
    else:
        getattr(case, where)[2 if where == "queries" else 1, 5] = torch.nan
    actual = decode_attention(*case.arguments)
    spoilt = actual.isnan().any(-1).tolist()
    assert spoilt == [False, False, True, where != "queries", False, False]
    assert actual[[0, 1, 4, 5]].isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
def test_an_infinity_ends_nothing(kernels: ModuleType, dtype: torch.dtype, value: float) -> None:
    case = make_case(2, 1, 32, dtype, 100, 101)
    case.keys[0, 3] = value
    case.values[0, 3] = value
    assert decode_attention(*case.arguments).shape == (2, 32)
    assert decode_attention(*case.arguments).shape == (2, 32)


def test_inputs_may_have_gaps(kernels: ModuleType) -> None:
    hidden = randn(32, 6).T  # (6, 32)
    assert_close(
        rms_norm(hidden, randn(64)[::2], 1e-5), reference.plain_rms_norm(hidden, randn(64)[::2], 1e-5)
    )
    weight, bias = randn(32, 9).T, randn(18)[::2]
    assert torch.equal(
        route(hidden, weight, bias, 3, 1e-9)[0], reference.plain_route(hidden, weight, bias, 3, 1e-9)[0]
    )
    case = make_case(4, 2, 32, torch.float32, 20, 30)
    check(case._replace(queries=randn(32, 4).T, values=randn(32, 2).T, cosines=randn(32)[::2]))


def test_parameters_that_want_gradients_are_read(kernels: ModuleType) -> None:
    norm, hidden = RMSNorm(32, 1e-5), randn(2, 32)
    with torch.inference_mode():
        assert_close(norm(hidden), reference.plain_rms_norm(hidden, norm.weight, 1e-5))


def test_arrays_without_torchs_table_are_read_too(kernels: ModuleType) -> None:
    """As tensors of a torch that has no exchange table of DLPack: numpy's arrays have none."""
    hidden, weight, out = randn(2, 32), randn(32, seed=1), torch.empty(2, 32)
    assert kernels.rms_norm(hidden.numpy(), weight.numpy(), 1e-5, out.numpy())
    assert_close(out, reference.plain_rms_norm(hidden, weight, 1e-5))
    assert not kernels.rms_norm(hidden.numpy()[:, ::2], weight.numpy()[::2], 1e-5, out[:, :16].numpy())


def test_only_few_exact_tokens_without_gradients_are_served() -> None:
    hidden = randn(3, 16)
    assert not suits_decode_ops(hidden)  # gradients are on
    with torch.inference_mode():
        assert suits_decode_ops(hidden)
        assert suits_decode_ops(randn(16, 16))
        assert not suits_decode_ops(randn(17, 16))
        assert not suits_decode_ops(hidden[:0])
        assert not suits_decode_ops(hidden[0])
        assert not suits_decode_ops(hidden.bfloat16())
        assert not suits_decode_ops(hidden.to("meta"))


def test_training_still_has_gradients() -> None:
    norm, router, hidden = RMSNorm(16, 1e-5), Router(16, 4, 2, 1e-12), randn(1, 16).requires_grad_()
    torch.nn.init.normal_(router.weight)
    torch.nn.init.zeros_(router.bias)
    _, weights = router(norm(hidden))
    (weights[0, 0] * 2).backward()
    assert hidden.grad is not None
    assert router.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_give_what_torch_gave(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    norm, router, hidden = RMSNorm(32, 1e-5), Router(32, 9, 3, 1e-12), randn(4, 32).to(dtype)
    router.weight.data, router.bias.data = randn(9, 32, seed=1), randn(9, seed=2) / 9
    with torch.inference_mode():
        normed, (expert_ids, weights) = norm.to(dtype)(hidden), router(hidden)
        for module in ("layers", "moe"):
            monkeypatch.setattr(f"ernie_local.model.{module}.suits_decode_ops", lambda *given: False)
        expected_ids, expected_weights = router(hidden)
        assert normed.dtype == weights.dtype == dtype
        assert_close(normed.float(), norm(hidden).float())
        assert torch.equal(expert_ids, expected_ids)
        assert_close(weights.float(), expected_weights.float())


def test_operators_keep_the_rules_of_torch() -> None:
    ops = torch.ops.ernie_local
    torch.library.opcheck(ops.rms_norm, (randn(3, 32), randn(32), 1e-5))
    torch.library.opcheck(ops.route, (randn(3, 32), randn(9, 32), randn(9), 4, 1e-12))
    for dtype in KV_DTYPES.values():
        torch.library.opcheck(ops.decode_attention, tuple(make_case(4, 2, 16, dtype, 5, 8)))
