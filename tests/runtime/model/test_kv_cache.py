"""The KV cache: what is written is what comes back, within the stored format's error, and no token leaks."""

from __future__ import annotations

import pytest
import torch

from ernie_local.config import TextConfig, parse_config
from ernie_local.model.kv_cache import KVCache, kv_bytes_per_token

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> TextConfig:
    """Two layers, three key-value heads of eight."""
    text = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    return parse_config({"model_type": "ernie4_5_vl_moe", "text_config": text}, "config.json").text


def states(
    num_tokens: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, num_tokens, 3, 8, generator=torch.Generator().manual_seed(seed))
    return keys.to(dtype), values.to(dtype)


def test_states_come_back_in_order_over_several_appends(config: TextConfig) -> None:
    cache = KVCache(config, 10, torch.float32, CPU)
    first, second = states(4, 0), states(3, 1)
    for layer_id in range(2):
        cache.append(layer_id, *first)
    cache.advance(4)
    keys, values = cache.append(1, *second)
    assert torch.equal(keys, torch.cat((first[0], second[0])).transpose(0, 1))
    assert torch.equal(values, torch.cat((first[1], second[1])).transpose(0, 1))
    assert cache.length == 4  # until every layer has written


def test_layers_do_not_share_room(config: TextConfig) -> None:
    cache = KVCache(config, 4, torch.float32, CPU)
    cache.append(0, *states(2, 0))
    cache.append(1, *states(2, 1))
    cache.advance(2)
    keys, _ = cache.append(0, *states(1, 2))
    assert torch.equal(keys[:, :2], states(2, 0)[0].transpose(0, 1))


def test_truncated_tokens_are_overwritten(config: TextConfig) -> None:
    cache = KVCache(config, 4, torch.float32, CPU)
    cache.append(0, *states(3, 0))
    cache.advance(3)
    cache.truncate(1)
    keys, _ = cache.append(0, *states(1, 5))
    assert keys.shape == (3, 2, 8)
    assert torch.equal(keys[:, 1], states(1, 5)[0][0])


def test_more_than_the_capacity_is_our_own_mistake(config: TextConfig) -> None:
    cache = KVCache(config, 2, torch.float32, CPU)
    with pytest.raises(AssertionError):
        cache.append(0, *states(3, 0))
    with pytest.raises(AssertionError):
        cache.truncate(1)


def test_same_dtype_gives_views_not_copies(config: TextConfig) -> None:
    cache = KVCache(config, 4, torch.bfloat16, CPU)
    keys, _ = cache.append(0, *states(2, 0, torch.bfloat16))
    again, _ = cache.append(0, *states(2, 1, torch.bfloat16))
    assert keys.data_ptr() == again.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_round_once(config: TextConfig, dtype: torch.dtype) -> None:
    cache = KVCache(config, 4, dtype, CPU)
    keys, values = states(4, 3)
    stored_keys, stored_values = cache.append(0, keys, values)
    assert stored_keys.dtype == torch.float32
    assert torch.equal(stored_keys, keys.to(dtype).float().transpose(0, 1))
    assert torch.equal(stored_values, values.to(dtype).float().transpose(0, 1))


def test_int8_is_within_half_a_step_of_its_own_scale(config: TextConfig) -> None:
    cache = KVCache(config, 6, torch.int8, CPU)
    keys, values = states(6, 4)
    keys[2] *= 1000  # a loud token must not coarsen the others
    keys[3] = 0
    stored, _ = cache.append(0, keys, values)
    half_step = keys.abs().amax(-1, keepdim=True) / 127 / 2
    error = (stored.transpose(0, 1) - keys).abs()
    assert (error <= half_step * 1.0001).all()
    assert error.max() > 0
    assert torch.equal(stored[:, 3], torch.zeros(3, 8))


def test_bytes_of_the_28b_model_and_of_a_real_allocation(config: TextConfig) -> None:
    full = parse_config({"model_type": "ernie4_5_vl_moe"}, "config.json").text
    assert kv_bytes_per_token(full, torch.bfloat16) == 57344
    assert kv_bytes_per_token(full, torch.int8) == 28 * 2 * 4 * (128 + 4)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        assert KVCache(config, 7, dtype, CPU).num_bytes == 7 * kv_bytes_per_token(config, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("host_layers", [1, 2])
def test_layers_in_ram_have_the_rows_that_they_would_have_elsewhere(
    config: TextConfig, dtype: torch.dtype, host_layers: int
) -> None:
    """What attention sees, what is read for a file, what was written from one, and what is forgotten."""
    whole, split = KVCache(config, 9, dtype, CPU), KVCache(config, 9, dtype, CPU, host_layers=host_layers)
    for cache in (whole, split):
        for layer_id in range(2):
            cache.append(layer_id, *states(5, layer_id))
        cache.advance(5)
        cache.truncate(4)
    assert (split.num_bytes, split.row_bytes(3)) == (whole.num_bytes, whole.row_bytes(3))
    read = [list(cache.read_rows(1, 4)) for cache in (whole, split)]
    assert all(torch.equal(one, other) for one, other in zip(*read, strict=True))
    for given, piece in zip(read[0], split.write_rows(3), strict=True):
        piece.copy_(given)
    split.advance(3)
    again = list(split.read_rows(4, 7))
    assert all(torch.equal(one, other) for one, other in zip(read[0], again, strict=True))
    split.truncate(4)
    for layer_id in range(2):
        of_both = (cache.append(layer_id, *states(1, 7)) for cache in (whole, split))
        for one, other in zip(*of_both, strict=True):
            assert torch.equal(one, other)
