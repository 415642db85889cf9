"""Normalizes few tokens and routes them to experts: `rms_norm` and `route`, for float32 on the CPU.

Each takes the place of a dozen small torch calls. On a GPU the model uses torch's own.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ernie_local.errors import UsageError
from ernie_local.kernels.arguments import check_float_rows, check_tensor
from ernie_local.kernels.operators import native_or_reference, needs_no_dispatch, register
from ernie_local.kernels.reference import plain_rms_norm, plain_route


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight for each token; NaN and infinity propagate as in torch.

    hidden: (tokens, size) float32; weight: (size,) float32 -> (tokens, size). Raises UsageError.
    """
    if needs_no_dispatch(hidden):
        return _rms_norm_cpu(hidden, weight, eps)
    output: Tensor = torch.ops.ernie_local.rms_norm(hidden, weight, eps)
    return output


def route(hidden: Tensor, weight: Tensor, bias: Tensor, top_k: int, norm_min: float) -> tuple[Tensor, Tensor]:
    """Expert ids by softmax score plus bias, and the scores alone, divided by max(their sum, norm_min).

    hidden: (tokens, hidden_size); weight: (experts, hidden_size); bias: (experts,), all float32 -> ids int64
    and weights float32, (tokens, top_k) each, greatest first. Of equal scores the lower id comes first;
    torch's topk promises no order there. A token with a NaN or an infinity still gets ids within the bank;
    its weights are NaN, as in torch. Raises UsageError.
    """
    if needs_no_dispatch(hidden):
        return _route_cpu(hidden, weight, bias, top_k, norm_min)
    chosen: tuple[Tensor, Tensor] = torch.ops.ernie_local.route(hidden, weight, bias, top_k, norm_min)
    return chosen


def _check_rms_norm(hidden: Tensor, weight: Tensor, _eps: float) -> None:
    check_float_rows("rms_norm", "hidden", hidden, "(tokens, size)")
    check_tensor("rms_norm", "weight", weight, (hidden.shape[1],), hidden.device)


def _check_route(hidden: Tensor, weight: Tensor, bias: Tensor, top_k: int, _norm_min: float) -> None:
    op = "route"
    check_float_rows(op, "hidden", hidden, "(tokens, hidden_size)")
    check_float_rows(op, "weight", weight, "(experts, hidden_size)")
    check_tensor(op, "weight", weight, (weight.shape[0], hidden.shape[1]), hidden.device)
    check_tensor(op, "bias", bias, (weight.shape[0],), hidden.device)
    if not 1 <= top_k <= weight.shape[0]:
        raise UsageError(
            f"{op}: top_k is {top_k}, there are {weight.shape[0]} experts",
            "each token goes to at least one expert and to none twice",
            "take top_k from the model's configuration",
        )


def _rms_norm_native(module: ModuleType, hidden: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    output = torch.empty_like(hidden)
    return output if module.rms_norm(hidden, weight, eps, output) else None


def _route_native(
    module: ModuleType, hidden: Tensor, weight: Tensor, bias: Tensor, top_k: int, norm_min: float
) -> tuple[Tensor, Tensor] | None:
    if not hidden.ndim or not 1 <= top_k <= bias.numel():
        return None
    # Named device and dtypes: torch's defaults may be others.
    expert_ids = torch.empty(hidden.shape[0], top_k, dtype=torch.int64, device="cpu")
    expert_weights = torch.empty(hidden.shape[0], top_k, dtype=torch.float32, device="cpu")
    is_done = module.route(hidden, weight, bias, top_k, norm_min, expert_ids, expert_weights)
    return (expert_ids, expert_weights) if is_done else None


def _route_fake(hidden: Tensor, _weight: Tensor, _bias: Tensor, top_k: int, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (hidden.shape[0], top_k)
    return hidden.new_empty(shape, dtype=torch.int64), hidden.new_empty(shape)


_rms_norm_cpu = partial(native_or_reference, _rms_norm_native, _check_rms_norm, plain_rms_norm)
_route_cpu = partial(native_or_reference, _route_native, _check_route, plain_route)
register("rms_norm(Tensor hidden, Tensor weight, float eps) -> Tensor", (None,) * 3, _rms_norm_cpu)
register(
    "route(Tensor hidden, Tensor weight, Tensor bias, int top_k, float norm_min) -> (Tensor, Tensor)",
    (None,) * 5,
    _route_cpu,
    fake=_route_fake,
)
