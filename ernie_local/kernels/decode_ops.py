"""What decoding a token needs beside packed matrices, as `torch.ops.ernie_local.*`: norm, router, attention.

For float32 on the CPU. Each takes the place of a dozen small torch calls, so nothing is checked before the
call that the native code checks anyway: it refuses, having done nothing, and only then Python looks for what
is wrong.
"""

from __future__ import annotations

import torch

from ernie_local.kernels import checks, reference
from ernie_local.kernels.native import native_module, warn_without_native
from ernie_local.kernels.ops import LIBRARY, follow_torch_threads, needs_no_dispatch

# More tokens than these are better served by torch's matrix products.
MOST_TOKENS = 16

LIBRARY.define("rms_norm(Tensor hidden, Tensor weight, float eps) -> Tensor")
LIBRARY.define(
    "route(Tensor hidden, Tensor weight, Tensor bias, int top_k, float norm_min) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "decode_attention(Tensor queries, Tensor keys, Tensor values, Tensor cosines, Tensor sines, "
    "Tensor(a!) cached_keys, Tensor(b!) cached_values, Tensor(c!)? key_scales, Tensor(d!)? value_scales, "
    "int length) -> Tensor"
)


def suits_decode_ops(hidden: torch.Tensor, most_tokens: int = MOST_TOKENS) -> bool:
    """Whether these operators serve `hidden`, (tokens, size): few tokens, on the CPU, without gradients."""
    return (
        hidden.dtype == torch.float32
        and hidden.is_cpu
        and hidden.ndim == 2
        and 1 <= hidden.shape[0] <= most_tokens
        and not torch.is_grad_enabled()
    )


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight for each token; NaN and infinity propagate as in torch.

    hidden: (tokens, size) float32; weight: (size,) float32 -> (tokens, size).
    """
    if needs_no_dispatch(hidden):
        return _rms_norm_cpu(hidden, weight, eps)
    output: torch.Tensor = torch.ops.ernie_local.rms_norm(hidden, weight, eps)
    return output


def route(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, top_k: int, norm_min: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids by softmax score plus bias, and the scores alone, divided by max(their sum, norm_min).

    hidden: (tokens, hidden_size); weight: (experts, hidden_size); bias: (experts,), all float32 -> ids int64
    and weights float32, (tokens, top_k) each, greatest first. Of equal ones the lower id comes first; torch's
    topk promises no order there. A token with a NaN or an infinity still gets ids within the bank; its
    weights are NaN, as in torch.
    """
    if needs_no_dispatch(hidden):
        return _route_cpu(hidden, weight, bias, top_k, norm_min)
    chosen: tuple[torch.Tensor, torch.Tensor] = torch.ops.ernie_local.route(
        hidden, weight, bias, top_k, norm_min
    )
    return chosen


def decode_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    cached_keys: torch.Tensor,
    cached_values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    length: int,
) -> torch.Tensor:
    """Attention of one new token over the `length` cached ones and itself; writes it behind them.

    queries: (heads, head_dim), keys and values: (kv_heads, head_dim), not yet turned; cosines, sines:
    (head_dim / 2,); all float32. The cache: (kv_heads, capacity, head_dim) in float32, bfloat16, float16 or
    int8, with scales (kv_heads, capacity, 1) float32 for int8 alone. What is attended to is what the cache
    holds after rounding. A NaN makes every head that sees it NaN, as in torch. -> (heads, head_dim) float32.
    """
    compute = _decode_attention_cpu if needs_no_dispatch(queries) else torch.ops.ernie_local.decode_attention
    output: torch.Tensor = compute(
        queries, keys, values, cosines, sines, cached_keys, cached_values, key_scales, value_scales, length
    )
    return output


def _rms_norm_cpu(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    native = native_module()
    if native is not None:
        follow_torch_threads()
        output = torch.empty_like(hidden)
        if native.rms_norm(hidden, weight, eps, output):
            return output
    checks.check_rms_norm(hidden, weight)
    if native is None:
        warn_without_native()
        return reference.rms_norm(hidden, weight, eps)
    output = torch.empty(hidden.shape, dtype=torch.float32, device="cpu")
    is_done = native.rms_norm(hidden.contiguous(), weight.contiguous(), eps, output)
    assert is_done
    return output


def _route_cpu(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, top_k: int, norm_min: float
) -> tuple[torch.Tensor, torch.Tensor]:
    native = native_module()
    if native is None or not hidden.ndim or not 1 <= top_k <= bias.numel():
        checks.check_route(hidden, weight, bias, top_k)
        warn_without_native()
        return reference.route(hidden, weight, bias, top_k, norm_min)
    follow_torch_threads()
    expert_ids = torch.empty(hidden.shape[0], top_k, dtype=torch.int64, device="cpu")
    expert_weights = torch.empty(hidden.shape[0], top_k, dtype=torch.float32, device="cpu")
    if not native.route(hidden, weight, bias, top_k, norm_min, expert_ids, expert_weights):
        checks.check_route(hidden, weight, bias, top_k)
        whole = (hidden.contiguous(), weight.contiguous(), bias.contiguous())
        is_done = native.route(*whole, top_k, norm_min, expert_ids, expert_weights)
        assert is_done
    return expert_ids, expert_weights


def _decode_attention_cpu(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    cached_keys: torch.Tensor,
    cached_values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    length: int,
) -> torch.Tensor:
    native = native_module()
    cache = (cached_keys, cached_values, key_scales, value_scales)
    if native is not None:
        follow_torch_threads()
        output = torch.empty_like(queries)
        if native.decode_attention(queries, keys, values, cosines, sines, *cache, length, output):
            return output
    new_token = (queries, keys, values, cosines, sines)
    checks.check_decode_attention(new_token, cache, length)
    if native is None:
        warn_without_native()
        return reference.decode_attention(*new_token, *cache, length)
    output = torch.empty(queries.shape, dtype=torch.float32, device="cpu")
    whole = [tensor.contiguous() for tensor in new_token]
    is_done = native.decode_attention(*whole, *cache, length, output)
    assert is_done
    return output


def _rms_norm_fake(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:  # noqa: ARG001
    return torch.empty_like(hidden)


def _route_fake(
    hidden: torch.Tensor,
    weight: torch.Tensor,  # noqa: ARG001
    bias: torch.Tensor,  # noqa: ARG001
    top_k: int,
    norm_min: float,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (hidden.shape[0], top_k)
    return hidden.new_empty(shape, dtype=torch.int64), hidden.new_empty(shape)


def _decode_attention_fake(queries: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(queries)


LIBRARY.impl("rms_norm", _rms_norm_cpu, "CPU")
LIBRARY.impl("route", _route_cpu, "CPU")
LIBRARY.impl("decode_attention", _decode_attention_cpu, "CPU")
torch.library.register_fake("ernie_local::rms_norm", _rms_norm_fake, lib=LIBRARY)
torch.library.register_fake("ernie_local::route", _route_fake, lib=LIBRARY)
torch.library.register_fake("ernie_local::decode_attention", _decode_attention_fake, lib=LIBRARY)
