"""What each format would cost one expert: the power of its weighted outputs, and the share lost in each.

Gate and up together, and down, are rounded in turn while the other stays exact, by clip search with the
columns' importance: how formats and experts compare is nearly that of GPTQ, at a tenth of its time. Knows one
expert and some of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ernie_local.packing import dequantize, find_format
from ernie_quant.expert import ExpertWeights
from ernie_quant.grid import round_to_grid, search_grid

Tensor = torch.Tensor
PARTS = ("gate_up", "down")


@dataclass(frozen=True, slots=True)
class OptionLosses:
    """power: sum over routed tokens of squared router weight times squared output; lost: by part and format,
    the share of it that rounding this part to this format changes."""

    power: float
    lost: dict[str, dict[str, float]]


def expert_outputs(weights: ExpertWeights, tokens: Tensor) -> Tensor:
    """down(silu(gate x) * up x), (tokens, hidden)."""
    inner = functional.silu(tokens @ weights.gate.t()).mul_(tokens @ weights.up.t())
    return inner @ weights.down.t()


def rounded_expert(
    weights: ExpertWeights,
    importance: Tensor,
    tokens: Tensor,
    formats: tuple[str | None, str | None],
) -> ExpertWeights:
    """The expert with gate and up, and down, rounded to these formats; None leaves them exact.

    importance: (hidden,), mean squares of the inputs; down's inputs are those of `tokens`.
    """
    gate_up, down = formats
    gate, up, down_weights = weights.gate, weights.up, weights.down
    if gate_up is not None:
        gate, up = (_rounded(matrix, gate_up, importance) for matrix in (gate, up))
    if down is not None:
        inner = functional.silu(tokens @ gate.t()).mul_(tokens @ up.t())
        down_weights = _rounded(down_weights, down, inner.square().mean(0).clamp_(min=1e-12))
    return ExpertWeights(gate, up, down_weights)


def option_losses(
    weights: ExpertWeights,
    importance: Tensor,
    tokens: Tensor,
    token_weights: Tensor,
    formats: Sequence[str],
) -> OptionLosses:
    """tokens: (tokens, hidden), at least one, that stand for the expert's; token_weights: (tokens,) of the
    router, whose squares count. The power is that of these tokens."""
    exact = expert_outputs(weights, tokens)
    squares = token_weights.square()[:, None]
    power = float((exact.square() * squares).sum(dtype=torch.float64))
    lost: dict[str, dict[str, float]] = {}
    for part in PARTS:
        lost[part] = {}
        for name in formats:
            chosen = (name, None) if part == "gate_up" else (None, name)
            outputs = expert_outputs(rounded_expert(weights, importance, tokens, chosen), tokens)
            change = float(((outputs - exact).square() * squares).sum(dtype=torch.float64))
            lost[part][name] = change / power if power > 0 else 0.0
    return OptionLosses(power, lost)


def _rounded(matrix: Tensor, format_name: str, importance: Tensor) -> Tensor:
    low_bit = find_format(format_name)
    return dequantize(round_to_grid(matrix, search_grid(matrix, low_bit, importance)))
