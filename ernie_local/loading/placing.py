"""Counts what a checkpoint needs of memory for a conversation, and decides where `load` puts it.

No weight is read for that. The arithmetic is the planner's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.experts.build import GpuShare, PagingSetup, paging_plan
from ernie_local.experts.device import CudaDevice
from ernie_local.experts.math import unpacking_room
from ernie_local.experts.options import PagingOptions
from ernie_local.loading.build import checkpoint_weights
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.kv_cache import kv_bytes_per_token
from ernie_local.model.memory_use import grown_tokens
from ernie_local.planner.conversation import largest_prompt_bytes
from ernie_local.planner.fit import AvailableMemory, Placement, expected_tokens, place
from ernie_local.planner.free_memory import free_memory, process_memory
from ernie_local.planner.need import MemoryNeed, gpu_room


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bytes. ram: of the process, None for what is free less `reserve`. vram: of a GPU, None for what is
    free there less a headroom."""

    ram: int | None
    reserve: int
    vram: int | None


@dataclass(frozen=True, slots=True)
class ComputeDemand:
    """What is asked for: where to compute, dtypes of weights and KV cache, numbers of tokens."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    context_size: int
    chunk_tokens: int | None
    gpu_kernels: str = "auto"

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.device.type != "cpu"


def count_need(
    checkpoint: Checkpoint,
    processor: ImageProcessorConfig,
    config: ModelConfig,
    demand: ComputeDemand,
    limits: MemoryLimits,
    paging: PagingOptions | None,
) -> MemoryNeed:
    """Bytes that the checkpoint takes."""
    tokens = demand.context_size
    cached = grown_tokens(tokens, tokens) if demand.is_on_gpu else tokens
    weights = checkpoint_weights(checkpoint, config, demand.dtype)
    plan = paging_plan(checkpoint, config, paging)
    at_once = expected_tokens(limits.ram if limits.vram is None else limits.vram, tokens)
    return replace(
        MemoryNeed.of_weights(config.text, weights.dense, weights.experts, plan),
        cache_bytes=cached * kv_bytes_per_token(config.text, demand.kv_dtype),
        context_size=tokens,
        prompt_bytes=largest_prompt_bytes(config, processor, at_once, demand.dtype.itemsize),
        room_bytes=gpu_room(config, tokens, demand.chunk_tokens) if demand.is_on_gpu else None,
        # Needed as long as weights are, and nothing else may have it.
        scratch_bytes=unpacking_room(config, demand.device, demand.gpu_kernels) if demand.is_on_gpu else 0,
        chunk_tokens=demand.chunk_tokens,
    )


def place_experts(need: MemoryNeed, device: torch.device, limits: MemoryLimits) -> Placement:
    """Where experts go. DoesNotFit if even paging does not help."""
    gpu = None
    if device.type != "cpu":
        gpu = AvailableMemory.of_gpu(torch.cuda.mem_get_info(device)[0], limits.vram)
    ram = AvailableMemory.of_ram(limits.ram, limits.reserve, used=process_memory(), free=free_memory())
    return place(need, ram, gpu)


def find_paging(placement: Placement, device: torch.device, options: PagingOptions) -> PagingSetup | None:
    """How experts are paged where they have been placed; None if all of them are in memory."""
    if placement.paged_bytes is None:
        return None
    gpu: GpuShare | None = None
    if placement.gpu_bytes is not None:
        assert placement.gpu_cache_bytes is not None
        assert placement.gpu_room_bytes is not None
        gpu = GpuShare(
            CudaDevice(device), placement.gpu_bytes, placement.gpu_cache_bytes, placement.gpu_room_bytes
        )
    return PagingSetup(placement.paged_bytes, options, gpu)
