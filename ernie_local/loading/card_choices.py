"""What a caller may choose about computing on a card, checked: its kernels, and CUDA graphs.

Owns which choices go together. The processor has none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ernie_local.config import ModelConfig
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels.card_kernels import CHOICE, CardKernels
from ernie_local.kernels.graph_recorder import CudaGraphs
from ernie_local.loading.expert_math import check_triton_formats
from ernie_local.model.ernie import ErnieModel

CudaGraphsChoice = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class CardChoices:
    """kernels: see CardKernelsChoice. graphs: auto is off, as nobody has measured yet where they help."""

    kernels: CardKernels
    graphs: CudaGraphsChoice

    @staticmethod
    def of(kernels: str, graphs: str, device: torch.device) -> CardChoices:
        """UsageError for names that mean nothing, or nothing on this device."""
        if kernels not in get_args(CardKernels):
            raise UsageError(
                f"card_kernels {kernels!r} is not one of {', '.join(get_args(CardKernels))}",
                "a card computes by Triton's kernels or by plain PyTorch",
                "use auto",
            )
        if graphs not in get_args(CudaGraphsChoice):
            raise UsageError(
                f"cuda_graphs {graphs!r} is not one of {', '.join(get_args(CudaGraphsChoice))}",
                "a card's decode is recorded or not",
                "use auto",
            )
        if device.type == "cpu" and (kernels, graphs) != ("auto", "auto"):
            raise UsageError(
                f"card_kernels {kernels} and cuda_graphs {graphs} with device cpu",
                "the processor has kernels of its own and no graphs; these are a card's",
                'use device="cuda", or leave both away',
            )
        return CardChoices(kernels, graphs)  # type: ignore[arg-type]

    def apply(self, config: ModelConfig, device: torch.device, kv_dtype: torch.dtype) -> None:
        """To what is loaded on this card from now on. DoesNotFit for what was asked for and cannot be."""
        from ernie_local.kernels.cuda_ops import card_attends, check_card_kernels

        CHOICE.choose(self.kernels)
        if CHOICE.is_triton_forced:
            check_triton_formats(config)
        if CHOICE.is_triton_forced or config.quantization is not None:
            check_card_kernels(device)
        if self.graphs == "on" and not card_attends(device, kv_dtype):
            raise DoesNotFit(
                f"cuda_graphs on, but there is no attention kernel on {device} for a cache in {kv_dtype}",
                "a graph has every step at fixed places, and only Triton's kernel has: over int8, float16, "
                "and bfloat16 from compute capability 8.0 on",
                "kv_dtype int8 or float16 with Triton's kernels, or leave cuda_graphs away",
            )

    def keep(self, network: ErnieModel) -> None:
        """For this model, which lies on the card, as long as it lives."""
        CHOICE.hold(network)
        network.recorder = CudaGraphs(network.device) if self.graphs == "on" else None
