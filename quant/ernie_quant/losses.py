"""Measures what formats lose: within one expert, and at the answers of the whole model.

Within an expert, gate and up together, and down, are rounded in turn while the other stays exact, by clip
search with the columns' importance. That ranks formats and experts nearly as GPTQ does, in a tenth of its
time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.model.layers import RMSNorm
from ernie_local.packing import dequantize, find_format
from ernie_quant.expert import ExpertWeights
from ernie_quant.grid import round_to_grid, search_grid
from ernie_quant.hessian import second_moments
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.refine import output_error

Tensor = torch.Tensor
PARTS = ("gate_up", "down")
TRELLIS, COMPARED = "w2t", "w2"
_COMPARED_ROWS = 64


def rounded(matrix: Tensor, format_name: str, importance: Tensor | None = None) -> Tensor:
    """What a matrix becomes in this format, by clip search. importance: (columns,), by default equal."""
    return dequantize(round_to_grid(matrix, search_grid(matrix, find_format(format_name), importance)))


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
    if gate_up is not None:
        gate, up = (rounded(matrix, gate_up, importance) for matrix in (weights.gate, weights.up))
        weights = replace(weights, gate=gate, up=up)
    if down is not None:
        mean_squares = weights.inner(tokens).square().mean(0).clamp_(min=1e-12)
        weights = replace(weights, down=rounded(weights.down, down, mean_squares))
    return weights


def trellis_ratios(weights: ExpertWeights, tokens: Tensor) -> dict[str, float]:
    """By part, what w2t loses by what COMPARED does, both calibrated.

    Rounding would not tell: a search along a trellis makes up for errors while it decides. Some rows are
    calibrated on every other token, and held against the others. 1 where nothing is lost.

    tokens: (tokens, hidden), two or more.
    """
    step = -(-len(weights.gate) // _COMPARED_ROWS)
    gate_up = torch.cat((weights.gate[::step], weights.up[::step]))
    down = weights.down[:: -(-len(weights.down) // _COMPARED_ROWS)]
    ratios = {}
    for part, rows, inputs in (("gate_up", gate_up, tokens), ("down", down, weights.inner(tokens))):
        own, held_out = (
            second_moments([half], torch.ones(len(half)), rows.shape[1]).matrix
            for half in (inputs[::2], inputs[1::2])
        )
        found, compared = (
            output_error(rows, held_out, quantize_matrix(rows, find_format(name), Recipe(), own))
            for name in (TRELLIS, COMPARED)
        )
        ratios[part] = found / compared if compared > 0 else 1.0
    return ratios


def option_losses(
    weights: ExpertWeights,
    importance: Tensor,
    tokens: Tensor,
    token_weights: Tensor,
    formats: Sequence[str],
    ratios: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """By part and format, the share of the outputs' power that the format loses.

    tokens: (tokens, hidden), at least one; token_weights: (tokens,) of the router, which count squared.
    ratios: of `trellis_ratios`, with which w2t is told from COMPARED.
    """
    exact = weights.outputs(tokens)
    squares = token_weights.square()[:, None]
    power = float((exact.square() * squares).sum(dtype=torch.float64))
    lost: dict[str, dict[str, float]] = {}
    for part in PARTS:
        lost[part] = {}
        for name in (name for name in formats if name != TRELLIS):
            chosen = (name, None) if part == "gate_up" else (None, name)
            outputs = rounded_expert(weights, importance, tokens, chosen).outputs(tokens)
            change = float(((outputs - exact).square() * squares).sum(dtype=torch.float64))
            lost[part][name] = change / power if power > 0 else 0.0
        if TRELLIS in formats:
            lost[part][TRELLIS] = lost[part][COMPARED] * ratios[part]
    return lost


_POSITIONS_AT_A_TIME = 128  # 53 MB of logits over 103,424 words
_ROWS_AT_A_TIME = 4096


class AnswerDivergence:
    """KL divergence from the unquantized model, whose final states are `exact`, (positions, hidden_size)."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, exact: Tensor) -> None:
        self._checkpoint, self._exact = checkpoint, exact
        self._head = "lm_head.weight" if "lm_head.weight" in checkpoint else "embed_tokens.weight"
        self._norm = RMSNorm(config.text.hidden_size, config.text.rms_norm_eps)
        checkpoint.read("norm.weight", self._norm.weight.data)

    @torch.inference_mode()
    def of(self, hidden: Tensor, head_format: str | None = None) -> float:
        """Mean over the positions of KL(exact || `hidden`), in nats; hidden: (positions, hidden_size).

        head_format: what the head of `hidden` is rounded to; None for the exact one.
        """
        total = 0.0
        parts = zip(self._exact.split(_POSITIONS_AT_A_TIME), hidden.split(_POSITIONS_AT_A_TIME), strict=True)
        for exact, other in parts:
            target = functional.log_softmax(self._logits(exact, None), dim=-1)
            found = functional.log_softmax(self._logits(other, head_format), dim=-1)
            total += float(functional.kl_div(found, target, reduction="sum", log_target=True))
        return total / max(len(hidden), 1)

    def _logits(self, hidden: Tensor, head_format: str | None) -> Tensor:
        normed = self._norm(hidden)
        rows, columns = self._checkpoint.shape(self._head)
        logits = torch.empty(len(hidden), rows)
        for start in range(0, rows, _ROWS_AT_A_TIME):
            block = torch.empty(min(_ROWS_AT_A_TIME, rows - start), columns)
            self._checkpoint.read_rows(self._head, start, block)
            if head_format is not None:
                block = rounded(block, head_format)
            logits[:, start : start + len(block)] = normed @ block.t()
        return logits
