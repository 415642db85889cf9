"""Attention of many tokens, in text and in the tower, against torch in float64, for every instruction set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ernie_local.errors import UsageError
from ernie_local.kernels import reference
from ernie_local.kernels.arguments import LayerStorage, NewTokens
from ernie_local.kernels.block_attention import chunk_attention, frame_attention
from ernie_local.model.kv_cache import KV_DTYPES
from tests.runtime.decode_cases import make_case, randn

LARGEST_ERROR = 2e-3  # of the largest value
MEAN_ERROR = 1e-3  # of the norm of all


def assert_near(actual: Tensor, expected: Tensor) -> None:
    difference = actual - expected
    assert difference.abs().max() <= LARGEST_ERROR * expected.abs().max()
    assert difference.norm() <= MEAN_ERROR * expected.norm()


DTYPES = pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)


def make_chunk(num_tokens: int, heads: int, kv_heads: int, head_dim: int) -> NewTokens:
    """As PackedLinear gives it: queries, keys and values are columns of one product."""
    together = randn(num_tokens, heads + 2 * kv_heads, head_dim, seed=1)
    queries, keys, values = together.split((heads, kv_heads, kv_heads), dim=1)
    angles = randn(num_tokens, head_dim // 2, seed=2)
    return NewTokens(queries, keys, values, angles.cos(), angles.sin())


def copy_of(cache: LayerStorage) -> LayerStorage:
    return LayerStorage(*(None if part is None else part.clone() for part in cache))  # type: ignore[arg-type]


def exact_attention(chunk: NewTokens, stored: LayerStorage, length: int) -> Tensor:
    """In float64 over the stored cache, which has the new tokens already."""
    visible = length + len(chunk.queries)
    keys, values = (
        part[:, :visible].double() * (1 if scales is None else scales[:, :visible])
        for part, scales in ((stored.keys, stored.key_scales), (stored.values, stored.value_scales))
    )
    even, odd = chunk.queries.double().unflatten(-1, (-1, 2)).unbind(-1)
    cosines, sines = chunk.cosines[:, None], chunk.sines[:, None]
    turned = torch.stack((even * cosines - odd * sines, odd * cosines + even * sines), -1).flatten(-2)
    mask = torch.ones(len(turned), visible, dtype=torch.bool).tril(length)
    attended = functional.scaled_dot_product_attention(
        turned.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


def check_chunk(chunk: NewTokens, cache: LayerStorage, length: int) -> Tensor:
    """The result is nearly the exact one, and the cache is that of one token after the other, bit for bit."""
    expected_cache = copy_of(cache)
    reference.plain_chunk_attention(chunk, expected_cache, length)
    actual = chunk_attention(chunk, cache, length)
    for one, other in zip(cache, expected_cache, strict=True):
        if one is not None and other is not None:
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    expected = exact_attention(chunk, cache, length)
    assert_near(actual, expected)
    return actual


@DTYPES
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(20, 4, 128), (4, 4, 16), (6, 2, 64), (5, 1, 80), (1, 1, 2), (3, 3, 20), (2, 2, 34)],
)
def test_chunks_attend(
    kernels: ModuleType, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    lengths = ((1, 0), (2, 0), (17, 0), (3, 100), (129, 127), (40, 128), (33, 1))
    for num_tokens, length in lengths if head_dim < 100 else lengths[2:4]:
        cache = LayerStorage(
            *make_case(heads, kv_heads, head_dim, dtype, length, length + num_tokens + 2)[5:9]
        )
        check_chunk(make_chunk(num_tokens, heads, kv_heads, head_dim), cache, length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_contexts_longer_than_the_blocks_that_are_held(dtype: torch.dtype) -> None:
    """128 blocks of 128 keys in all heads: with 16 heads, two passes and a rest."""
    cache = LayerStorage(*make_case(16, 16, 16, dtype, 2300, 2400)[5:9])
    check_chunk(make_chunk(70, 16, 16, 16), cache, 2300)


def test_any_number_of_threads_gives_the_same(kernels: ModuleType) -> None:
    chunk, results = make_chunk(100, 6, 2, 32), []
    before = torch.get_num_threads()
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        cache = LayerStorage(*make_case(6, 2, 32, torch.bfloat16, 300, 400)[5:9])
        results.append(chunk_attention(chunk, cache, 300))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@DTYPES
def test_scores_far_beyond_80(kernels: ModuleType, dtype: torch.dtype) -> None:
    chunk = make_chunk(40, 4, 2, 32)
    for loudness in (0.0, 5.0):
        for loud in (0, 90, 139):  # a key of the cache in the first and second block, and a new one
            cache = LayerStorage(*make_case(4, 2, 32, dtype, 130, 200)[5:9])
            loud_chunk = chunk._replace(queries=chunk.queries * loudness, keys=chunk.keys.clone())
            if loud < 130:
                (cache.key_scales if cache.key_scales is not None else cache.keys)[:, loud] *= 4
            else:
                loud_chunk.keys[loud - 130] *= 4
            check_chunk(loud_chunk, cache, 130)


def test_what_weighs_little_beside_the_first_token_is_kept(kernels: ModuleType) -> None:
    """A first key with e^10 times the weight of each of 4000 others, which together have a sixth of it.

    Only the 127 that share its block are rounded to nothing.
    """
    cache = LayerStorage(*make_case(1, 1, 32, torch.float32, 4000, 4010)[5:9])
    cache.keys.zero_()
    cache.keys[:, 0, 0] = 10 * 32**0.5
    cache.values[:, 1:] = 1.0
    cache.values[:, 0] = 0.0
    chunk = make_chunk(3, 1, 1, 32)._replace(cosines=torch.ones(3, 16), sines=torch.zeros(3, 16))
    chunk.queries.zero_()[..., 0] = 1.0
    chunk.keys.zero_()
    chunk.values.fill_(1.0)
    others = 4000 * math.exp(-10)
    assert chunk_attention(chunk, cache, 4000)[0].mean() == pytest.approx(others / (1 + others), abs=6e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["queries", "keys", "values"])
def test_what_is_no_number_stays_where_it_is_seen(kernels: ModuleType, part: str, value: float) -> None:
    chunk = make_chunk(20, 4, 2, 32)
    getattr(chunk, part)[9, 1, 5] = value
    cache = LayerStorage(*make_case(4, 2, 32, torch.float32, 140, 160)[5:9])
    is_lost = chunk_attention(chunk, cache, 140).isnan().all(-1)  # (tokens, heads)
    expected = torch.zeros(20, 4, dtype=torch.bool)
    if part == "queries":
        expected[9, 1] = True
    else:
        expected[9:, 2:] = True  # of the second head of keys
    assert torch.equal(is_lost, expected)


def exact_frames(states: Tensor, cosines: Tensor, sines: Tensor, heads: int, sizes: Sequence[int]) -> Tensor:
    return reference.plain_frame_attention(states.double(), cosines.double(), sines.double(), heads, sizes)


@pytest.mark.parametrize(
    ("heads", "head_dim", "sizes"),
    [(2, 80, (300,)), (4, 16, (4, 130, 1, 96)), (1, 20, (2, 97)), (3, 128, (33,)), (16, 64, (150, 150))],
)
def test_frames_attend(kernels: ModuleType, heads: int, head_dim: int, sizes: tuple[int, ...]) -> None:
    num_patches = sum(sizes)
    states, angles = randn(num_patches, 3 * heads * head_dim), randn(num_patches, head_dim // 2, seed=1)
    for factor in (1.0, 4.2):  # scores to 80
        given = states * factor, angles.cos(), angles.sin(), heads, sizes
        assert_near(frame_attention(*given), exact_frames(*given))


def test_frames_longer_than_the_blocks_that_are_held() -> None:
    states, angles = randn(1300, 3 * 16 * 16), randn(1300, 8, seed=1)
    given = states, angles.cos(), angles.sin(), 16, (1300,)
    assert_near(frame_attention(*given), exact_frames(*given))


def test_a_patch_that_is_no_number_spoils_its_head_of_its_frame(kernels: ModuleType) -> None:
    states, angles = randn(60, 3 * 4 * 16), randn(60, 8, seed=1)
    states.view(60, 3, 4, 16)[30, 2, 1, 7] = math.nan
    actual = frame_attention(states, angles.cos(), angles.sin(), 4, (25, 20, 15)).view(60, 4, 16)
    is_lost = actual.isnan().all(-1)
    assert is_lost[25:45, 1].all()
    assert is_lost.sum() == 20


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def either_code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr("ernie_local.kernels.operators.native_module", lambda: None)
        monkeypatch.setattr("ernie_local.kernels.operators.warn_without_native", lambda: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.ones(5, 64)}, "queries is torch.float32 (5, 64)"),
        ({"queries": torch.ones(5, 4, 16).half()}, "queries is torch.float16 (5, 4, 16)"),
        ({"queries": torch.ones(0, 4, 16)}, "queries is torch.float32 (0, 4, 16)"),
        ({"queries": torch.ones(5, 3, 16)}, "queries is torch.float32 (5, 3, 16) for 2 heads of keys"),
        ({"keys": torch.ones(4, 2, 16)}, "keys is torch.float32 (4, 2, 16), wanted torch.float32 (5, 2, 16)"),
        ({"values": torch.ones(5, 2, 15)}, "values is torch.float32 (5, 2, 15)"),
        ({"cosines": torch.ones(5, 16)}, "cosines is torch.float32 (5, 16), wanted torch.float32 (5, 8)"),
        ({"sines": torch.ones(8)}, "sines is torch.float32 (8,)"),
        ({"length": 4}, "length is 4, the capacity 8"),
        ({"length": -1}, "length is -1, the capacity 8"),
    ],
)
def test_chunk_attention_refuses(either_code: None, changes: dict[str, Any], message: str) -> None:
    case = make_case(4, 2, 16, torch.float32, 0, 8)
    chunk = make_chunk(5, 4, 2, 16)
    length = changes.pop("length", 2)
    with pytest.raises(UsageError) as caught:
        chunk_attention(chunk._replace(**changes), LayerStorage(*case[5:9]), length)
    changes["length"] = length
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert lines[0].startswith(f"chunk_attention: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": torch.ones(6, 2, 48)}, "states is torch.float32 (6, 2, 48)"),
        ({"states": torch.ones(6, 96).double()}, "states is torch.float64 (6, 96)"),
        ({"states": torch.ones(6, 90)}, "states has 90 columns for 2 heads"),
        ({"heads": 0}, "states has 96 columns for 0 heads"),
        ({"states": torch.ones(6, 6 * 130)}, "a head of 130 columns, 128 are the most"),
        ({"sines": torch.ones(6, 7)}, "sines is torch.float32 (6, 7), wanted torch.float32 (6, 8)"),
        ({"frame_sizes": [3, 4]}, "frames of [3, 4] patches, states has 6"),
        ({"frame_sizes": [6, 0]}, "frames of [6, 0] patches, states has 6"),
        ({"frame_sizes": []}, "frames of [] patches, states has 6"),
    ],
)
def test_frame_attention_refuses(either_code: None, changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "states": torch.ones(6, 96), "cosines": torch.ones(6, 8), "sines": torch.ones(6, 8), "heads": 2,
        "frame_sizes": [2, 4],
    }  # fmt: skip
    with pytest.raises(UsageError) as caught:
        frame_attention(**given | changes)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert lines[0].startswith(f"frame_attention: {message}")


def test_torch_sees_both_operators() -> None:
    states, angles = randn(10, 3 * 2 * 16), randn(10, 8, seed=1)
    operator = torch.ops.ernie_local.frame_attention.default
    torch.library.opcheck(operator, (states, angles.cos(), angles.sin(), 2, [4, 6]))
    case = make_case(4, 2, 16, torch.float32, 3, 9)
    chunk = make_chunk(5, 4, 2, 16)
    given = (*(part.contiguous() for part in chunk), *case[5:9], 3)
    case.cached_keys.nan_to_num_()
    case.cached_values.nan_to_num_()
    torch.library.opcheck(torch.ops.ernie_local.chunk_attention.default, given)
