"""Causal grouped-query attention against the textbook formula in float64, whole and in chunks."""

from __future__ import annotations

import pytest
import torch

from ernie_local.config import TextConfig, parse_config
from ernie_local.kernels.attention import attend_chunk
from ernie_local.kernels.bounded_attention import attend_in_pieces
from ernie_local.model import attention
from ernie_local.model.attention import (
    AttentionStep,
    BlockAttention,
    ChunkAttention,
    KernelAttention,
    SelfAttention,
    StoredAttention,
    causal_masks,
    choose_attention,
)
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.layers import RMSNorm
from ernie_local.model.memory_use import AttentionWay, attention_bytes
from ernie_local.model.rope import TextRope, rotate_pairs
from ernie_local.planner.model_size import published_model

CPU = torch.device("cpu")


def make_config(heads: int, kv_heads: int) -> TextConfig:
    text = {
        "hidden_size": 40,
        "head_dim": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    return parse_config({"model_type": "ernie4_5_vl_moe", "text_config": text}, "config.json").text


def textbook(
    attention: SelfAttention, hidden: torch.Tensor, rope: TextRope, positions: torch.Tensor
) -> torch.Tensor:
    num_tokens, head_dim = hidden.shape[0], attention.head_dim
    group = attention.num_heads // attention.num_kv_heads
    cosines, sines = rope.angles(positions)
    queries = rotate_pairs(attention.q_proj(hidden).view(num_tokens, -1, head_dim), cosines, sines).double()
    keys = rotate_pairs(attention.k_proj(hidden).view(num_tokens, -1, head_dim), cosines, sines).double()
    values = attention.v_proj(hidden).view(num_tokens, -1, head_dim).double()
    attended = torch.empty(num_tokens, attention.num_heads, head_dim, dtype=torch.float64)
    for head in range(attention.num_heads):
        for token in range(num_tokens):
            seen = slice(0, token + 1)
            scores = keys[seen, head // group] @ queries[token, head] / head_dim**0.5
            attended[token, head] = scores.softmax(0) @ values[seen, head // group]
    output: torch.Tensor = attention.o_proj(attended.flatten(1).float())
    return output


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1), (1, 1)])
@pytest.mark.parametrize("chunk", [11, 4, 1])
@pytest.mark.parametrize("way", ["masks", "pieces"])
@torch.inference_mode()
def test_attention_matches_the_textbook(heads: int, kv_heads: int, chunk: int, way: AttentionWay) -> None:
    torch.manual_seed(heads)
    config = make_config(heads, kv_heads)
    attention, rope, norm = SelfAttention(config, 0), TextRope(config, CPU), RMSNorm(40, 1e-5)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    hidden = torch.randn(11, 40)
    positions = torch.randint(0, 30, (3, 11))
    cache = KVCache(config, 11, torch.float32, CPU)
    parts = []
    for start in range(0, 11, chunk):
        part = hidden[start : start + chunk]
        cosines, sines = rope.angles(positions[:, start : start + chunk])
        masks = causal_masks(len(part), start, CPU, max_entries=24)  # several, of some rows each
        step = choose_attention(part, cosines, sines, cache, way)
        if len(part) > 1 and way == "masks":
            step = ChunkAttention(cosines, sines, cache, masks)
        parts.append(step.add_to(part, norm, attention))
        cache.advance(len(part))
    expected = hidden + textbook(attention, norm(hidden), rope, positions)
    torch.testing.assert_close(torch.cat(parts), expected, atol=2e-6, rtol=1e-5)


def test_masks_cover_all_rows_and_hide_exactly_the_later_tokens() -> None:
    masks = causal_masks(num_new=10, num_past=7, device=CPU, max_entries=60)
    assert len(masks) > 1
    rows = 0
    for mask in masks:
        visible = 7 + rows + len(mask)
        for mask_row in mask:
            assert mask_row.tolist() == [column <= 7 + rows for column in range(visible)]
            rows += 1
    assert rows == 10


def test_masks_stay_small_at_any_context() -> None:
    masks = causal_masks(num_new=64, num_past=100_000, device=CPU)
    assert max(mask.numel() for mask in masks) <= 4 << 20
    assert len(causal_masks(num_new=64, num_past=1_000, device=CPU)) == 1


def test_no_mask_where_none_is_needed() -> None:
    assert causal_masks(num_new=1, num_past=5, device=CPU) == []
    assert causal_masks(num_new=500, num_past=0, device=CPU) == []


@pytest.mark.parametrize("chunk", [11, 4])
@torch.inference_mode()
def test_chunks_in_blocks_attend_as_torch_does(chunk: int) -> None:
    torch.manual_seed(1)
    config = make_config(6, 2)
    attention, rope, norm = SelfAttention(config, 0), TextRope(config, CPU), RMSNorm(40, 1e-5)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    hidden, positions = torch.randn(11, 40), torch.randint(0, 30, (3, 11))
    results = []
    for in_blocks in (False, True):
        cache, parts = KVCache(config, 11, torch.bfloat16, CPU), []
        for start in range(0, 11, chunk):
            part, angles = hidden[start : start + chunk], rope.angles(positions[:, start : start + chunk])
            step = choose_attention(part, *angles, cache, "blocks" if in_blocks else "masks")
            assert isinstance(step, BlockAttention) == in_blocks
            parts.append(step.add_to(part, norm, attention))
            cache.advance(len(part))
        results.append(torch.cat(parts))
    difference = (results[1] - results[0]).norm() / (results[0] - hidden).norm()
    assert 0 < difference < 1e-3


def test_gradients_and_other_dtypes_attend_by_torch() -> None:
    cache, angles = KVCache(make_config(6, 2), 11, torch.float32, CPU), (torch.ones(3, 4), torch.ones(3, 4))
    assert isinstance(choose_attention(torch.ones(3, 40), *angles, cache, "blocks"), ChunkAttention)
    with torch.inference_mode():
        halves = torch.ones(3, 40).bfloat16()
        assert isinstance(choose_attention(halves, *angles, cache, "blocks"), ChunkAttention)


def on_gpu(num_tokens: int, kv_dtype: torch.dtype, way: AttentionWay) -> AttentionStep:
    cache = KVCache(make_config(6, 2), 8, kv_dtype, torch.device("meta"))
    hidden, angles = torch.ones(num_tokens, 40, device="meta"), torch.ones(num_tokens, 4, device="meta")
    return choose_attention(hidden, angles, angles, cache, way)


@torch.inference_mode()
def test_a_gpu_makes_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "gpu_attends", lambda device, kv_dtype, kernels: kv_dtype == torch.float16)
    chosen = {
        (num_tokens, kv_dtype, way): on_gpu(num_tokens, kv_dtype, way)
        for num_tokens in (1, 3)
        for kv_dtype in (torch.float16, torch.bfloat16)
        for way in ("kernel", "pieces")
    }
    for (num_tokens, kv_dtype, way), step in chosen.items():
        if num_tokens == 1 and kv_dtype == torch.float16:
            assert isinstance(step, KernelAttention)
        else:
            assert isinstance(step, StoredAttention)
            by_kernel = num_tokens > 1 and way == "kernel"
            assert step.kernel is (attend_chunk if by_kernel else attend_in_pieces)


def test_gradients_on_a_gpu_take_masks() -> None:
    assert isinstance(on_gpu(3, torch.float16, "kernel"), ChunkAttention)


def test_memory_of_blocks_does_not_grow_with_the_context() -> None:
    config = make_config(6, 2)
    most = 128 * 66624 + 8 * 6 * 2048
    assert attention_bytes(config, 2048, 1 << 20, "blocks") == most
    assert attention_bytes(config, 2048, 2048, "blocks") == 2 * 16 * 66624 + 8 * 6 * 2048
    assert attention_bytes(config, 1, 1 << 20, "blocks") == 0


@pytest.mark.parametrize("way", ["kernel", "pieces"])
def test_memory_on_a_gpu_stays_within_a_few_mebibytes(way: AttentionWay) -> None:
    text = published_model().config.text
    for num_new in (1, 2, 100, 2048):
        for num_all in (2048, 32768, 131072):
            assert attention_bytes(text, num_new, num_all, way) < 8 << 20
