"""How far other hidden states, or another head, move what the model would say: KL divergence at positions.

Knows the last norm and the head of an unquantized model. Logits exist for a few positions at a time only.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.model.layers import RMSNorm
from ernie_local.packing import dequantize, find_format
from ernie_quant.grid import round_to_grid, search_grid

Tensor = torch.Tensor
_POSITIONS_AT_A_TIME = 128  # 53 MB of logits over 103,424 words
_ROWS_AT_A_TIME = 4096


class AnswerDivergence:
    """Against the model whose hidden states behind the last layer are `exact`, (positions, hidden_size)."""

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
