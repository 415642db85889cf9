"""The attention half of a layer for one new token, from packed projections, in one call.

Five operators in one: between two long reads each small call costs several times what it costs by itself, as
the weights have swept Python out of the caches. What it means stands in `_composed`.
"""

from __future__ import annotations

import torch

from ernie_local.kernels.checks import check_one_token
from ernie_local.kernels.decode_ops import decode_attention, rms_norm
from ernie_local.kernels.native import native_module
from ernie_local.kernels.ops import LIBRARY, follow_torch_threads, needs_no_dispatch, packed_linear
from ernie_local.packing import find_format

Tensor = torch.Tensor

LIBRARY.define(
    "packed_attention(Tensor hidden, Tensor norm, float eps, Tensor qkv, str qkv_format, "
    "Tensor o, str o_format, int heads, Tensor cosines, Tensor sines, "
    "Tensor(a!) cached_keys, Tensor(b!) cached_values, "
    "Tensor(c!)? key_scales, Tensor(d!)? value_scales, int length) -> Tensor"
)


def packed_attention(
    hidden: Tensor,
    norm: Tensor,
    eps: float,
    qkv: Tensor,
    qkv_format: str,
    o: Tensor,
    o_format: str,
    heads: int,
    cosines: Tensor,
    sines: Tensor,
    cached_keys: Tensor,
    cached_values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    length: int,
) -> Tensor:
    """hidden + o(attention(qkv(norm(hidden)))) of one new token, whose key and value go into the cache.

    hidden: (1, hidden_size) float32; norm: (hidden_size,); qkv, o: packed bytes, qkv with the rows of queries
    before keys before values; heads: of queries; cosines, sines: (1, head_dim / 2); the cache as in
    `decode_attention`. Returns (1, hidden_size). Raises what the operators that it stands for raise.
    """
    compute = _packed_attention_cpu if needs_no_dispatch(hidden) else torch.ops.ernie_local.packed_attention
    cache = (cached_keys, cached_values, key_scales, value_scales)
    output: Tensor = compute(
        hidden, norm, eps, qkv, qkv_format, o, o_format, heads, cosines, sines, *cache, length
    )
    return output


def _packed_attention_cpu(
    hidden: Tensor,
    norm: Tensor,
    eps: float,
    qkv: Tensor,
    qkv_format: str,
    o: Tensor,
    o_format: str,
    heads: int,
    cosines: Tensor,
    sines: Tensor,
    cached_keys: Tensor,
    cached_values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    length: int,
) -> Tensor:
    native = native_module()
    cache = (cached_keys, cached_values, key_scales, value_scales)
    if native is not None:
        follow_torch_threads()
        output = torch.empty_like(hidden)
        formats = find_format(qkv_format).format_id, find_format(o_format).format_id
        if native.packed_attention(
            hidden, norm, eps, qkv, formats[0], o, formats[1], heads, cosines, sines, *cache, length, output
        ):
            return output
    return _composed(hidden, norm, eps, qkv, qkv_format, o, o_format, heads, cosines, sines, cache, length)


def _composed(
    hidden: Tensor,
    norm: Tensor,
    eps: float,
    qkv: Tensor,
    qkv_format: str,
    o: Tensor,
    o_format: str,
    heads: int,
    cosines: Tensor,
    sines: Tensor,
    cache: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    length: int,
) -> Tensor:
    """What it means, and, where the native code refuses, the operator that says why."""
    check_one_token("packed_attention", hidden, cache[0])
    kv_heads, _, head_dim = cache[0].shape
    states = packed_linear(rms_norm(hidden, norm, eps), qkv, qkv_format, (heads + 2 * kv_heads) * head_dim)
    by_head = states.view(heads + 2 * kv_heads, head_dim)
    queries, keys, values = by_head.split((heads, kv_heads, kv_heads))
    attended = decode_attention(queries, keys, values, cosines.flatten(), sines.flatten(), *cache, length)
    return hidden + packed_linear(attended.view(1, heads * head_dim), o, o_format, hidden.shape[1])


def _packed_attention_fake(hidden: Tensor, *_: object) -> Tensor:
    return torch.empty_like(hidden)


LIBRARY.impl("packed_attention", _packed_attention_cpu, "CPU")
torch.library.register_fake("ernie_local::packed_attention", _packed_attention_fake, lib=LIBRARY)
