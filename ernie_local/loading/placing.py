"""Counts what a checkpoint needs of memory for a conversation, and decides where `load` puts it.

No weight is read for that. The arithmetic is the planner's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.experts.build import GpuShare, PagingSetup, paging_plan
from ernie_local.experts.device import CudaDevice
from ernie_local.experts.options import PagingOptions
from ernie_local.loading.build import count_weights
from ernie_local.loading.expert_math import unpacking_room
from ernie_local.media.processor_config import read_processor_config
from ernie_local.model.kv_cache import kv_bytes_per_token
from ernie_local.model.memory_use import grown_tokens
from ernie_local.planner.gpu_placement import GpuLimits, gpu_room, place_beside_gpu
from ernie_local.planner.images import largest_prompt_bytes
from ernie_local.planner.placement import MemoryNeed, Placement, expected_tokens, place_in_ram


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bytes. ram: of the process, None for what is free
    less `reserve`. vram: of a GPU;
    None for what is free there."""

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

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.device.type != "cpu"


def count_need(
    checkpoint: Checkpoint,
    directory: Path,
    config: ModelConfig,
    demand: ComputeDemand,
    limits: MemoryLimits,
    paging: PagingOptions | None,
) -> MemoryNeed:
    """Bytes that the checkpoint in `directory` takes. ModelUnusable for image settings that make no sense."""
    tokens = demand.context_size
    cached = grown_tokens(tokens, tokens) if demand.is_on_gpu else tokens
    weights = count_weights(checkpoint, config, demand.dtype)
    plan = paging_plan(checkpoint, config, paging)
    at_once = expected_tokens(limits.ram if limits.vram is None else limits.vram, tokens)
    processor = read_processor_config(directory, config.vision)
    return MemoryNeed(
        weights.dense,
        weights.experts,
        cached * kv_bytes_per_token(config.text, demand.kv_dtype),
        None if plan is None else plan.least_bytes,
        largest_prompt_bytes(config, processor, at_once, demand.dtype.itemsize),
        tokens,
    )


def place(need: MemoryNeed, config: ModelConfig, demand: ComputeDemand, limits: MemoryLimits) -> Placement:
    """Where experts go. DoesNotFit if even paging does not help."""
    if not demand.is_on_gpu:
        return place_in_ram(need, config.text, limits.ram, limits.reserve, demand.chunk_tokens)
    room_bytes = gpu_room(config, demand.context_size, demand.chunk_tokens)
    gpu_free = torch.cuda.mem_get_info(demand.device)[0]
    gpu_limits = GpuLimits(gpu_free, limits.vram, limits.ram, limits.reserve)
    # Needed as long as weights are, so nothing else may have it.
    unpacking = unpacking_room(config, demand.device)
    need = dataclasses.replace(need, dense_bytes=need.dense_bytes + unpacking)
    return place_beside_gpu(need, config, room_bytes, gpu_limits, demand.chunk_tokens)


def find_paging(
    placement: Placement, device: torch.device, options: PagingOptions | None
) -> PagingSetup | None:
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
    return PagingSetup(placement.paged_bytes, PagingOptions() if options is None else options, gpu)
