"""Attention of many tokens by the GPU's kernel against torch in float64, at sizes that fill no block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.engine import Engine
from ernie_local.kernels import gpu
from ernie_local.kernels.arguments import LayerStorage
from ernie_local.kernels.triton.chunk_attention import attend_chunk_by_triton
from ernie_local.kernels.triton.device import TritonDevice
from ernie_local.model.ernie import ErnieModel
from tests.runtime import paged_models
from tests.runtime.kernel_tolerances import BFLOAT16, EXACT, FLOAT16, relative_error
from tests.runtime.stored_chunks import StoredChunk, exact_attention, make_chunk

AMPERE, TURING = TritonDevice(), TritonDevice(uses_tensor_cores=False)
REAL, ODD, SMALL = (20, 4, 128), (6, 2, 24), (5, 1, 32)  # heads, heads of keys, their size
TOLERANCES = {
    torch.float32: EXACT,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.int8: FLOAT16,
}


def attend(chunk: StoredChunk, device: TritonDevice = AMPERE) -> torch.Tensor:
    return attend_chunk_by_triton(*chunk, device)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "num_new", "length"),
    [
        (ODD, 2, 0),
        (ODD, 33, 0),  # 99 rows
        (ODD, 64, 31),
        (SMALL, 13, 64),
        (SMALL, 1, 65),
        ((2, 2, 6), 7, 5),
        (REAL, 9, 38),
    ],
)
def test_each_token_sees_itself_and_all_before_it(
    dtype: torch.dtype, sizes: tuple[int, int, int], num_new: int, length: int
) -> None:
    chunk = make_chunk(sizes, dtype, num_new, length)
    assert relative_error(attend(chunk), exact_attention(chunk)) < TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [*list(TOLERANCES.items())[:2], (torch.bfloat16, EXACT), (torch.int8, FLOAT16)]
)
def test_gpus_without_tensor_cores_compute_the_same(dtype: torch.dtype, tolerance: float) -> None:
    """Bfloat16 is exact there: it is multiplied as float32."""
    chunk = make_chunk(SMALL, dtype, 21, 20)
    assert relative_error(attend(chunk, TURING), exact_attention(chunk)) < tolerance


@settings(max_examples=25)
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 7),
    head_dim=st.integers(1, 20).map(lambda half: 2 * half),
    num_new=st.integers(1, 40),
    length=st.integers(0, 70),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.int8]),
    device=st.sampled_from([AMPERE, TURING]),
)
def test_any_sizes(
    kv_heads: int,
    group: int,
    head_dim: int,
    num_new: int,
    length: int,
    dtype: torch.dtype,
    device: TritonDevice,
) -> None:
    chunk = make_chunk((kv_heads * group, kv_heads, head_dim), dtype, num_new, length)
    assert relative_error(attend(chunk, device), exact_attention(chunk)) < TOLERANCES[dtype]


def test_later_tokens_change_nothing() -> None:
    """Not by a bit, and wherever the prompt is cut."""
    whole = make_chunk(ODD, torch.float16, 40, 10)
    attended = attend(whole)
    for part in (whole.cache.keys, whole.cache.values):
        part[:, 10 + 25 :] = 60000.0
    changed = attend(whole)
    assert torch.equal(changed[:25], attended[:25])
    assert not torch.equal(changed[25:], attended[25:])
    alone = attend(StoredChunk(whole.queries[7:25].clone(), whole.cache, 17))
    torch.testing.assert_close(alone, attended[7:25], rtol=2**-9, atol=2**-11)


def test_results_are_like_queries() -> None:
    chunk = make_chunk(ODD, torch.float16, 12, 10)
    halves = chunk._replace(queries=chunk.queries.bfloat16())
    attended = attend(halves)
    assert attended.dtype == torch.bfloat16
    assert relative_error(attended.float(), exact_attention(halves)) < BFLOAT16
    strided = chunk.queries.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(attend(chunk._replace(queries=strided)), attend(chunk))


def test_queries_beyond_float16_do_not_overflow() -> None:
    chunk = make_chunk(ODD, torch.float16, 12, 10)
    keys = (chunk.cache.keys.float() * 1e-5).half()
    chunk = StoredChunk(chunk.queries * 1e6, LayerStorage(keys, *chunk.cache[1:]), 10)
    attended = attend(chunk)
    assert bool(attended.isfinite().all())
    # Scores are tens, and off by as much of one as float16 rounds queries: weights by that factor of e.
    assert relative_error(attended, exact_attention(chunk)) < 0.05


def test_scores_far_apart_do_not_overflow() -> None:
    chunk = make_chunk(SMALL, torch.float32, 12, 60)
    chunk.cache.keys[:, 40] *= 1000
    assert relative_error(attend(chunk), exact_attention(chunk)) < EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_a_nan_is_seen_by_those_behind_it(dtype: torch.dtype) -> None:
    chunk = make_chunk(ODD, dtype, 12, 40)
    where = chunk.cache.keys if chunk.cache.key_scales is None else chunk.cache.key_scales
    where[1, 45, 0] = torch.nan
    is_nan = attend(chunk).isnan()
    assert is_nan[5:, 3:].all()
    assert not is_nan[:5].any()
    assert not is_nan[:, :3].any()


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8, torch.float32], ids=str)
def test_a_prompt_has_the_logits_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, kv_dtype: torch.dtype
) -> None:
    model, found = paged_models.build(NANO_DIRECTORY, None), {}
    for way in ("masks", "kernel"):
        if way == "kernel":
            monkeypatch.setattr(gpu, "find_triton", lambda device, gpu_kernels="auto": AMPERE)
            monkeypatch.setattr(ErnieModel, "attention_way", way)
        engine = Engine(model, 100, kv_dtype, chunk_tokens=37)
        engine.prefill(list(range(20, 70)))
        found[way] = engine.prefill(list(range(30, 60)))
    # Through six layers, in which a number that is rounded to int8 may end beside its neighbour.
    assert relative_error(found["kernel"], found["masks"]) < 4 * TOLERANCES[kv_dtype]
