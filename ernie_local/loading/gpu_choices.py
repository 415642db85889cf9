"""Checks what a caller chose about computing on a GPU: its kernels, and CUDA graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ernie_local.config import ModelConfig
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels.gpu_kernels import CHOICE, GpuKernels
from ernie_local.kernels.graph_recorder import CudaGraphs
from ernie_local.loading.expert_math import check_triton_formats
from ernie_local.model.ernie import ErnieModel

CudaGraphsChoice = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class GpuChoices:
    """kernels: see GpuKernelsChoice. graphs: auto is off until measurements show where they help."""

    kernels: GpuKernels
    graphs: CudaGraphsChoice

    @staticmethod
    def of(kernels: str, graphs: str, device: torch.device) -> GpuChoices:
        """UsageError for names that mean nothing, or nothing on this device."""
        if kernels not in get_args(GpuKernels):
            raise UsageError(
                f"gpu_kernels {kernels!r} is not one of {', '.join(get_args(GpuKernels))}",
                "a GPU computes by Triton's kernels or by plain PyTorch",
                "use auto",
            )
        if graphs not in get_args(CudaGraphsChoice):
            raise UsageError(
                f"cuda_graphs {graphs!r} is not one of {', '.join(get_args(CudaGraphsChoice))}",
                "a GPU's decode is recorded or not",
                "use auto",
            )
        if device.type == "cpu" and (kernels, graphs) != ("auto", "auto"):
            raise UsageError(
                f"gpu_kernels {kernels} and cuda_graphs {graphs} with device cpu",
                "the processor has its own kernels and no CUDA graphs; these are choices for a GPU",
                'use device="cuda", or omit both',
            )
        return GpuChoices(kernels, graphs)  # type: ignore[arg-type]

    def apply(self, config: ModelConfig, device: torch.device, kv_dtype: torch.dtype) -> None:
        """Use these kernels for what is loaded from now on. DoesNotFit for a choice that cannot be met."""
        from ernie_local.kernels.cuda_ops import check_gpu_kernels, gpu_attends

        CHOICE.choose(self.kernels)
        if CHOICE.is_triton_forced:
            check_triton_formats(config)
        if CHOICE.is_triton_forced or config.quantization is not None:
            check_gpu_kernels(device)
        if self.graphs == "on" and not gpu_attends(device, kv_dtype):
            raise DoesNotFit(
                f"cuda_graphs on, but there is no attention kernel on {device} for a cache in {kv_dtype}",
                "a graph needs fixed addresses, which only Triton's attention kernel has: for int8, float16, "
                "and bfloat16 from compute capability 8.0 on",
                "use kv_dtype int8 or float16 with Triton's kernels, or omit cuda_graphs",
            )

    def recorder(self, device: torch.device) -> CudaGraphs | None:
        """What records decode on this GPU, if that was asked for."""
        return CudaGraphs(device) if self.graphs == "on" else None

    def keep(self, network: ErnieModel) -> None:
        """Keep to these kernels as long as this model lives, which lies on the GPU."""
        CHOICE.hold(network)
