"""Attention by plain torch on a GPU: exact, and never a matrix of all scores in memory.

There is no GPU here: pieces are computed on the CPU, and the tensors that they make are counted.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from ernie_local.kernels import attention_pieces, bounded_attention
from ernie_local.kernels.attention_pieces import AttentionPiece
from ernie_local.kernels.bounded_attention import attend_frame, attend_in_pieces
from ernie_local.kernels.reference import plain_frame_attention
from ernie_local.model.kv_cache import KV_DTYPES
from ernie_local.model.memory_use import encoding_bytes
from ernie_local.planner.model_size import published_model
from tests.runtime.decode_cases import randn
from tests.runtime.kernel_tolerances import EXACT, relative_error
from tests.runtime.peak_bytes import PeakBytes
from tests.runtime.stored_chunks import exact_attention, make_chunk

VISION = published_model().config.vision
DTYPES = pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
Frame = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 new tokens of 6 heads and 16 cached ones."""
    for name, value in (("_MOST_SCORES", 768), ("_LEAST_TOKENS", 16), ("_MOST_TOKENS", 32), ("_STEP", 4)):
        monkeypatch.setattr(attention_pieces, name, value)


@DTYPES
@pytest.mark.parametrize(("num_new", "length"), [(1, 0), (1, 70), (2, 0), (40, 0), (40, 33), (8, 56)])
@pytest.mark.usefixtures("small_pieces")
def test_pieces_are_put_together(dtype: torch.dtype, num_new: int, length: int) -> None:
    chunk = make_chunk((6, 2, 24), dtype, num_new, length)
    assert relative_error(attend_in_pieces(*chunk), exact_attention(chunk)) < EXACT


@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 7),
    num_new=st.integers(1, 60),
    length=st.integers(0, 90),
    dtype=st.sampled_from([*KV_DTYPES.values()]),
    most_scores=st.integers(16, 2000),
)
def test_any_sizes(
    kv_heads: int, group: int, num_new: int, length: int, dtype: torch.dtype, most_scores: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("_MOST_SCORES", most_scores), ("_LEAST_TOKENS", 8), ("_STEP", 8)):
            patched.setattr(attention_pieces, name, value)
        chunk = make_chunk((kv_heads * group, kv_heads, 10), dtype, num_new, length)
        assert relative_error(attend_in_pieces(*chunk), exact_attention(chunk)) < EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_are_like_queries(dtype: torch.dtype) -> None:
    chunk = make_chunk((6, 2, 24), torch.int8, 9, 20)
    chunk = chunk._replace(queries=chunk.queries.to(dtype))
    attended = attend_in_pieces(*chunk)
    assert attended.dtype == dtype
    assert relative_error(attended.float(), exact_attention(chunk)) < 2**-8


@pytest.mark.usefixtures("small_pieces")
def test_scores_far_apart_do_not_overflow() -> None:
    chunk = make_chunk((6, 2, 24), torch.float32, 12, 60)
    chunk.cache.keys[:, 40] *= 1000
    assert relative_error(attend_in_pieces(*chunk), exact_attention(chunk)) < EXACT


@DTYPES
@pytest.mark.parametrize(("num_new", "length"), [(1, 5000), (130, 2000)])
def test_memory_is_that_of_one_piece(dtype: torch.dtype, num_new: int, length: int) -> None:
    chunk = make_chunk((20, 4, 128), dtype, num_new, length)
    with PeakBytes() as watched:
        attend_in_pieces(*chunk)
    taken = watched.most - chunk.queries.nbytes  # the result is not counted
    predicted = AttentionPiece.of(20, 4, 128, num_new, length + num_new).num_bytes
    assert taken < predicted
    # Keys and values in float32 are multiplied as they lie there.
    assert taken > 0.9 * predicted or dtype == torch.float32


def make_frame(patches: int, dtype: torch.dtype = torch.float32) -> Frame:
    first, second, third = (randn(1, 3, patches, 16, seed=seed).to(dtype) for seed in range(3))
    return first, second, third


def fuse(monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype) -> None:
    """Make torch have fused kernels for these alone."""
    monkeypatch.setattr(bounded_attention, "_is_fused", lambda queries, *others: queries.dtype in dtypes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fused", [[], [torch.float32]], ids=str)
def test_a_frame_is_attended_to_exactly(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fused: list[torch.dtype]
) -> None:
    frame = make_frame(75, dtype)
    queries, keys, values = (part.double() for part in frame)
    exact = scaled_dot_product_attention(queries, keys, values).float()
    fuse(monkeypatch, *fused)
    monkeypatch.setattr(bounded_attention, "_FRAME_SCORES", 32 * 3 * 75)  # 32 queries at a time
    attended = attend_frame(*frame)
    assert attended.dtype == dtype
    assert relative_error(attended.float(), exact) < (EXACT if dtype == torch.float32 else 2**-8)


def test_torch_is_asked_for_what_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU before 8.0 computes a frame in bfloat16 as float32; one without kernels writes no score down."""
    asked: list[torch.dtype] = []

    def noted(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        asked.append(queries.dtype)
        return scaled_dot_product_attention(queries, keys, values)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    for fused in ([torch.bfloat16, torch.float32], [torch.float32], []):
        fuse(monkeypatch, *fused)
        attend_frame(*make_frame(20, torch.bfloat16))
    assert asked == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("fused", [[], [torch.float32]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_page_takes_no_more_than_the_rule_for_images_has(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fused: list[torch.dtype]
) -> None:
    """Besides its result attention has the bytes that are counted for rows of the MLP, now not at work."""
    fuse(monkeypatch, *fused)
    patches, heads, head_dim = 11088, 1, 80  # one head is turned at a time
    states = randn(patches, 3 * heads * head_dim).to(dtype)
    angles = randn(patches, head_dim // 2)
    with PeakBytes() as watched:
        attended = plain_frame_attention(states, angles.cos(), angles.sin(), heads, [patches])
    rows = encoding_bytes(VISION, [patches], dtype.itemsize) - 5 * patches * 1280 * dtype.itemsize
    assert watched.most - attended.nbytes < rows


def test_a_gpu_without_values_is_asked_for_none() -> None:
    frame = [part.to("meta") for part in make_frame(75)]
    assert attend_frame(*frame).shape == frame[0].shape
