"""Attention of one token against plain torch: caches in 16 bits and int8, lengths around stretches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ernie_local.errors import UsageError
from ernie_local.kernels import reference
from ernie_local.kernels.arguments import LayerStorage, NewToken
from ernie_local.kernels.triton.attention import STRETCH, attend_by_triton
from ernie_local.kernels.triton.device import TritonDevice
from tests.runtime.kernel_tolerances import BFLOAT16, FLOAT16, relative_error

LENGTHS = [
    (0, 1),
    (5, 20),
    (STRETCH - 1, STRETCH),
    (STRETCH, 2 * STRETCH + 88),
    (2 * STRETCH + 87, 2 * STRETCH + 88),
]
Cache = list[Any]  # keys, values and their scales, or None
REAL, ODD = (20, 4, 128), (6, 2, 24)  # heads, heads of keys, their size


def new_token(heads: int, kv_heads: int, head_dim: int) -> list[Any]:
    angles = torch.rand(head_dim // 2) * 6
    states = [torch.randn(count, head_dim) for count in (heads, kv_heads, kv_heads)]
    return [*states, angles.cos(), angles.sin()]


def random_cache(kv_heads: int, capacity: int, head_dim: int, dtype: torch.dtype) -> Cache:
    """Rows beyond the length hold garbage, too."""
    if dtype != torch.int8:
        states = torch.randn(2, kv_heads, capacity, head_dim).to(dtype)
        return [states[0].clone(), states[1].clone(), None, None]
    codes = torch.randint(-127, 128, (2, kv_heads, capacity, head_dim)).to(torch.int8)
    scales = torch.rand(2, kv_heads, capacity, 1) / 64
    return [codes[0].clone(), codes[1].clone(), scales[0].clone(), scales[1].clone()]


def both(
    new: list[Any], cache: Cache, length: int, gpu: TritonDevice
) -> tuple[torch.Tensor, torch.Tensor, Cache, Cache]:
    """What the kernels and plain torch compute, and the caches after it."""
    ours: Cache = [None if part is None else part.clone() for part in cache]
    theirs: Cache = [None if part is None else part.clone() for part in cache]
    actual = attend_by_triton(NewToken(*new), LayerStorage(*ours), torch.tensor([length]), gpu)
    expected = reference.plain_attention(NewToken(*new), LayerStorage(*theirs), length)
    return actual, expected, ours, theirs


@pytest.mark.parametrize(
    ("sizes", "length", "capacity"), [(ODD, *pair) for pair in LENGTHS] + [(REAL, *LENGTHS[-1])]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_attention_over_all_that_is_cached(
    sizes: tuple[int, int, int], dtype: torch.dtype, length: int, capacity: int
) -> None:
    cache = random_cache(sizes[1], capacity, sizes[2], dtype)
    actual, expected, ours, theirs = both(new_token(*sizes), cache, length, TritonDevice())
    assert relative_error(actual, expected) < FLOAT16
    for our, their in zip(ours, theirs, strict=True):
        if our is not None and their is not None:
            # int8 and its scales to the bit; turned states may differ in their last bit.
            torch.testing.assert_close(our, their, rtol=2**-10 if dtype == torch.float16 else 1e-6, atol=0)


def test_bfloat16_cache() -> None:
    cache = random_cache(4, 70, 128, torch.bfloat16)
    actual, expected, ours, theirs = both(new_token(*REAL), cache, 66, TritonDevice(torch.bfloat16))
    assert relative_error(actual, expected) < BFLOAT16
    assert ours[0] is not None
    assert theirs[0] is not None
    torch.testing.assert_close(ours[0], theirs[0], rtol=2**-7, atol=0)


def test_gpus_without_tensor_cores_compute_the_same() -> None:
    cache = random_cache(4, 70, 128, torch.int8)
    actual, expected, _, _ = both(new_token(*REAL), cache, 66, TritonDevice(uses_tensor_cores=False))
    assert relative_error(actual, expected) < FLOAT16


def test_queries_beyond_float16_do_not_overflow() -> None:
    new = new_token(*ODD)
    new[0] *= 1e6
    new[1] *= 1e-5
    cache = random_cache(2, 20, 24, torch.float16)
    cache[0] = (torch.randn(2, 20, 24) * 1e-5).half()
    actual, expected, _, _ = both(new, cache, 10, TritonDevice())
    assert bool(actual.isfinite().all())
    # Scores are tens, and off by as much of one as float16 rounds queries: weights by that factor of e.
    assert relative_error(actual, expected) < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("part", [0, 1, 2], ids=["queries", "keys", "values"])
def test_a_nan_makes_every_head_that_sees_it_nan(dtype: torch.dtype, part: int) -> None:
    new = new_token(*ODD)
    new[part][0, 3] = torch.nan
    actual, expected, _, _ = both(new, random_cache(2, 20, 24, dtype), 10, TritonDevice())
    assert torch.equal(actual.isnan(), expected.isnan())


@pytest.mark.parametrize(
    ("dtype", "gpu"),
    [(torch.float32, TritonDevice()), (torch.bfloat16, TritonDevice(uses_tensor_cores=False))],
    ids=str,
)
def test_caches_that_no_gpu_multiplies_are_refused(dtype: torch.dtype, gpu: TritonDevice) -> None:
    with pytest.raises(UsageError, match=rf"a cache in {dtype}, this GPU multiplies"):
        both(new_token(*ODD), random_cache(2, 20, 24, dtype), 10, gpu)
