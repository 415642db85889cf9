"""Measures what formats lose: within one expert, and at the answers of the whole model.

Within an expert, gate and up together, and down, are rounded in turn while the other stays exact, by clip
search with the columns' importance. That ranks formats and experts nearly as GPTQ does, in a tenth of its
time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.model.layers import RMSNorm
from ernie_local.packing import dequantize, find_format
from ernie_quant.expert import ExpertWeights
from ernie_quant.grid import round_to_grid, search_grid

Tensor = torch.Tensor
PARTS = ("gate_up", "down")


@dataclass(frozen=True, slots=True)
class OptionLosses:
    """power: sum over routed tokens of squared router weight times squared output; lost: by part and format,
    the share of `power` that is lost when this part is rounded to this format."""

    power: float
    lost: dict[str, dict[str, float]]


def expert_outputs(weights: ExpertWeights, tokens: Tensor) -> Tensor:
    """down(silu(gate x) * up x), (tokens, hidden)."""
    inner = functional.silu(tokens @ weights.gate.t()).mul_(tokens @ weights.up.t())
    return inner @ weights.down.t()


def weighted_expert(weights: ExpertWeights) -> Callable[[Tensor, Tensor], Tensor]:
    """The expert as a function of tokens, (tokens, hidden), and router weights, (tokens, 1)."""
    return lambda tokens, token_weights: expert_outputs(weights, tokens).mul_(token_weights)


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
    """What each of `formats` loses on `tokens`, (tokens, hidden), at least one, which also give the power.

    token_weights: (tokens,) of the router, which count squared.
    """
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


_POSITIONS_AT_A_TIME = 128  # 53 MB of logits over 103,424 words
_ROWS_AT_A_TIME = 4096


class AnswerDivergence:
    """KL divergence from the unquantized model, whose final states are `exact`, (positions, hidden_size)."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, exact: Tensor) -> None:
        self._checkpoint = checkpoint
        self._head = "lm_head.weight" if "lm_head.weight" in checkpoint else "embed_tokens.weight"
        self._norm = RMSNorm(config.text.hidden_size, config.text.rms_norm_eps)
        weight = torch.empty(config.text.hidden_size)
        checkpoint.read("norm.weight", weight)
        self._norm.weight.data = weight
        self._exact = exact

    @torch.inference_mode()
    def of(self, hidden: Tensor) -> float:
        """Mean over the positions of KL(exact || `hidden`), in nats; hidden: (positions, hidden_size)."""
        return self._mean(hidden, None)

    @torch.inference_mode()
    def of_rounded_head(self, format_name: str) -> float:
        """The same for a head rounded to this format."""
        return self._mean(self._exact, format_name)

    def _mean(self, hidden: Tensor, head_format: str | None) -> float:
        if not len(hidden):
            return 0.0
        total = 0.0
        parts = zip(self._exact.split(_POSITIONS_AT_A_TIME), hidden.split(_POSITIONS_AT_A_TIME), strict=True)
        for exact, other in parts:
            target = functional.log_softmax(self._logits(exact, None), dim=-1)
            found = functional.log_softmax(self._logits(other, head_format), dim=-1)
            divergence = functional.kl_div(found, target, reduction="sum", log_target=True)
            total += float(divergence)
        return total / len(hidden)

    def _logits(self, hidden: Tensor, head_format: str | None) -> Tensor:
        normed = self._norm(hidden)
        rows, columns = self._checkpoint.shape(self._head)
        logits = torch.empty(len(hidden), rows)
        for start in range(0, rows, _ROWS_AT_A_TIME):
            block = torch.empty(min(_ROWS_AT_A_TIME, rows - start), columns)
            self._checkpoint.read_rows(self._head, start, block)
            if head_format is not None:
                low_bit = find_format(head_format)
                block = dequantize(round_to_grid(block, search_grid(block, low_bit)))
            logits[:, start : start + len(block)] = normed @ block.t()
        return logits
