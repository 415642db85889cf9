"""The operators on an NVIDIA GPU against plain torch on the CPU: what the interpreter cannot show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ernie_local.kernels import reference
from ernie_local.kernels.arguments import (
    ABSENT_SLOT,
    ExpertsCall,
    LayerStorage,
    NewToken,
    PackedMatrix,
)
from ernie_local.kernels.attention import attend_chunk, decode_attention
from ernie_local.kernels.attention_pieces import AttentionPiece
from ernie_local.kernels.bounded_attention import attend_frame, attend_in_pieces
from ernie_local.kernels.experts import add_packed_experts
from ernie_local.kernels.gpu import require_triton
from ernie_local.kernels.linear import packed_linear, packed_rows
from ernie_local.packing import FORMATS, pack_matrix, pack_page
from tests.runtime.kernel_tolerances import BFLOAT16, EXACT, EXPERTS_FLOAT16, FLOAT16, relative_error
from tests.runtime.random_matrices import random_matrix, random_page
from tests.runtime.stored_chunks import StoredChunk, exact_attention, make_chunk

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
HIDDEN, INNER = 2560, 528  # the model's, and one that is no whole number of steps


def test_the_kernels_can_run_here() -> None:
    require_triton(GPU)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 100])
def test_linear(name: str, num_tokens: int) -> None:
    packed = pack_matrix(random_matrix(name, 1032, HIDDEN))
    tokens = torch.randn(num_tokens, HIDDEN)
    actual = packed_linear(tokens.to(GPU), PackedMatrix(packed.to(GPU), name, 1032))
    expected = reference.plain_linear(tokens, PackedMatrix(packed, name, 1032))
    assert relative_error(actual.cpu(), expected) < (EXACT if num_tokens <= 2 else FLOAT16)


@pytest.mark.parametrize("name", FORMATS)
def test_rows(name: str) -> None:
    packed, row_ids = pack_matrix(random_matrix(name, 40, HIDDEN)), torch.tensor([39, 0, 17])
    actual = packed_rows(row_ids.to(GPU), PackedMatrix(packed.to(GPU), name, 40), HIDDEN)
    expected = reference.plain_rows(row_ids, PackedMatrix(packed, name, 40), HIDDEN)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "formats", [("w4", "w4"), ("w2", "w2l"), ("w8", "w8"), ("w3", "w2s"), ("w2t", "w2t")], ids="-".join
)
@pytest.mark.parametrize("num_tokens", [1, 8, 9, 200])
def test_experts(formats: tuple[str, str], num_tokens: int) -> None:
    pages = [pack_page(random_page(*formats, HIDDEN, INNER, seed)) for seed in range(8)]
    units = torch.cat(pages).view(-1, 4096)
    places = torch.arange(8) * (pages[0].numel() // 4096)
    places[5] = ABSENT_SLOT
    hidden, weights = torch.randn(num_tokens, HIDDEN), torch.rand(num_tokens, 6)
    ids = torch.randint(8, (num_tokens, 6))
    shared = pack_page(random_page("w8", "w8", HIDDEN, 2 * INNER))[None]
    call = ExpertsCall(hidden, units, ids, weights, shared, places)
    tokens = hidden.to(GPU), units.to(GPU), ids.to(GPU), weights.to(GPU)
    there = ExpertsCall(*tokens, shared.to(GPU), places.to(GPU))
    expected, on_gpu = torch.zeros(num_tokens, HIDDEN), torch.zeros(num_tokens, HIDDEN, device=GPU)
    reference.add_plain_experts(expected, call)
    add_packed_experts(on_gpu, there)
    assert relative_error(on_gpu.cpu(), expected) < (EXACT if num_tokens <= 8 else EXPERTS_FLOAT16)
    again = torch.zeros_like(on_gpu)
    add_packed_experts(again, there)
    assert torch.equal(again, on_gpu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("length", [0, 63, 255, 256, 4000])
def test_attention(dtype: torch.dtype, length: int) -> None:
    queries, keys, values = torch.randn(20, 128), torch.randn(4, 128), torch.randn(4, 128)
    angles = torch.rand(64) * 6
    states, scales = torch.randn(2, 4, 4096, 128), None
    if dtype == torch.int8:
        scales = torch.rand(2, 4, 4096, 1) / 64
        states = torch.randint(-127, 128, states.shape)
    cached = states.to(dtype)
    pair = (None, None) if scales is None else tuple(scales)
    new_token = NewToken(queries, keys, values, angles.cos(), angles.sin())
    parts: list[Any] = [*cached, *pair]
    there: list[Any] = [None if part is None else part.to(GPU) for part in parts]
    expected = reference.plain_attention(new_token, LayerStorage(*parts), length)
    on_gpu = NewToken(*(part.to(GPU) for part in new_token))
    actual = decode_attention(on_gpu, LayerStorage(*there), length)
    assert relative_error(actual.cpu(), expected) < FLOAT16


def sent(chunk: StoredChunk) -> StoredChunk:
    parts: list[Any] = [None if part is None else part.to(GPU) for part in chunk.cache]
    return StoredChunk(chunk.queries.to(GPU), LayerStorage(*parts), chunk.length)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, EXACT),
        (torch.float16, FLOAT16),
        (torch.bfloat16, BFLOAT16),
        (torch.int8, FLOAT16),
    ],
    ids=str,
)
@pytest.mark.parametrize(("num_new", "length"), [(2, 0), (513, 0), (100, 4000)])
def test_chunks_attend_without_memory(
    dtype: torch.dtype, tolerance: float, num_new: int, length: int
) -> None:
    chunk = make_chunk((20, 4, 128), dtype, num_new, length)
    there, expected = sent(chunk), exact_attention(chunk)
    piece = AttentionPiece.of(20, 4, 128, num_new, length + num_new).num_bytes
    for attend, most, error in ((attend_chunk, 0, tolerance), (attend_in_pieces, piece, EXACT)):
        assert relative_error(attend(*there).cpu(), expected) < error  # compiled and warm, too
        torch.cuda.reset_peak_memory_stats(GPU)
        held = torch.cuda.memory_allocated(GPU)
        attend(*there)
        taken = torch.cuda.max_memory_allocated(GPU) - held
        assert taken <= there.queries.nbytes + most + (64 << 10)  # torch rounds up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_page_of_a_document_is_encoded_without_all_scores(dtype: torch.dtype) -> None:
    """11088 patches, an A4 page at 150 dpi; the scores of its 16 heads would be 7.3 GiB in float32."""
    frame = [torch.randn(1, 16, 11088, 80, device=GPU, dtype=dtype) for _ in range(3)]
    torch.cuda.reset_peak_memory_stats(GPU)
    held = torch.cuda.memory_allocated(GPU)
    attended = attend_frame(*frame)
    assert attended.dtype == dtype
    assert torch.cuda.max_memory_allocated(GPU) - held <= 40 * 11088 * 16 * 80
