"""Checks what a caller chose about computing on a GPU: its kernels, and CUDA graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ernie_local.config import ModelConfig
from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.kernels.arguments import GpuKernels
from ernie_local.kernels.attention import gpu_attends
from ernie_local.kernels.gpu import check_gpu_kernels
from ernie_local.kernels.graphs import CudaGraphRecorder
from ernie_local.loading.expert_math import check_triton_formats

CudaGraphsChoice = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class GpuChoices:
    """The choices. graphs: auto is off until measurements show where they help."""

    kernels: GpuKernels
    graphs: CudaGraphsChoice

    @staticmethod
    def of(kernels: str, graphs: str, device: torch.device) -> GpuChoices:
        """UsageError for names that mean nothing, or nothing on this device."""
        if kernels not in get_args(GpuKernels):
            raise UsageError(
                f"{parameter('gpu_kernels')} {kernels!r} is not one of {', '.join(get_args(GpuKernels))}",
                "a GPU computes by Triton's kernels or by plain PyTorch",
                "use auto",
            )
        if graphs not in get_args(CudaGraphsChoice):
            raise UsageError(
                f"{parameter('cuda_graphs')} {graphs!r} is not {' or '.join(get_args(CudaGraphsChoice))}",
                "a GPU's decode is recorded or not",
                "use auto",
            )
        if device.type == "cpu" and (kernels, graphs) != ("auto", "auto"):
            raise UsageError(
                f"{parameter('gpu_kernels', kernels)} and {parameter('cuda_graphs', graphs)} on the CPU",
                "the processor has its own kernels and no CUDA graphs; these are choices for a GPU",
                f"use {parameter('device', 'cuda')}, or omit both",
            )
        return GpuChoices(kernels, graphs)  # type: ignore[arg-type]

    def check(self, config: ModelConfig, device: torch.device, kv_dtype: torch.dtype) -> None:
        """Raise DoesNotFit for what this GPU cannot do; warn where auto finds no kernels."""
        if self.kernels == "triton":
            check_triton_formats(config)
        if self.kernels == "triton" or config.quantization is not None:
            check_gpu_kernels(device, self.kernels)
        if self.graphs == "on" and not gpu_attends(device, kv_dtype, self.kernels):
            raise DoesNotFit(
                f"{parameter('cuda_graphs', 'on')}: no attention kernel on {device} for a cache in "
                f"{kv_dtype}",
                "a graph needs fixed addresses, which only Triton's attention kernel has: for int8, float16, "
                "and bfloat16 from compute capability 8.0 on",
                f"use {parameter('kv_dtype')} int8 or float16 with Triton's kernels, or omit the first",
            )

    def recorder(self, device: torch.device) -> CudaGraphRecorder | None:
        """What records decode on this GPU, if that was asked for."""
        return CudaGraphRecorder(device) if self.graphs == "on" else None
