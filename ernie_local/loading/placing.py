"""What a checkpoint needs of memory for a conversation, and where `load` puts it. No weight is read for that.

Owns which limit counts for what. The arithmetic is the planner's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError
from ernie_local.experts.options import PagingOptions
from ernie_local.loading.build import count_weights
from ernie_local.loading.expert_math import unpacking_room
from ernie_local.loading.paging import paging_plan
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.kv_cache import kv_bytes_per_token
from ernie_local.model.memory_use import grown_tokens
from ernie_local.planner.conversation import largest_prompt_bytes
from ernie_local.planner.fit import Memory, Placement, expected_tokens, place
from ernie_local.planner.free_memory import free_memory, process_memory
from ernie_local.planner.gpu import gpu_memory, gpu_room
from ernie_local.planner.need import MemoryNeed


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes. ram: of the process, None for what is free less `reserve`. vram: of a GPU, or of what stands
    for one; None where nobody said."""

    ram: int | None
    reserve: int
    vram: int | None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a conversation shall be: where it is computed, dtypes of weights and cache, tokens."""

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
    processor: ImageProcessorConfig,
    config: ModelConfig,
    demand: Demand,
    limits: Limits,
    paging: PagingOptions | None,
) -> MemoryNeed:
    """Bytes that the checkpoint takes."""
    tokens = demand.context_size
    cached = grown_tokens(tokens, tokens) if demand.is_on_gpu else tokens
    weights = count_weights(checkpoint, config, demand.dtype)
    plan = paging_plan(checkpoint, config, paging)
    at_once = expected_tokens(limits.ram if limits.vram is None else limits.vram, tokens)
    return MemoryNeed(
        config=config.text,
        dense_bytes=weights.dense,
        expert_bytes=weights.experts,
        least_expert_bytes=None if plan is None else plan.least_bytes,
        cache_bytes=cached * kv_bytes_per_token(config.text, demand.kv_dtype),
        context_size=tokens,
        prompt_bytes=largest_prompt_bytes(config, processor, at_once, demand.dtype.itemsize),
        room_bytes=gpu_room(config, tokens, demand.chunk_tokens) if demand.is_on_gpu else None,
        # Needed as long as weights are, and nothing else may have it.
        scratch_bytes=unpacking_room(config, demand.device) if demand.is_on_gpu else 0,
        chunk_tokens=demand.chunk_tokens,
    )


def place_experts(
    need: MemoryNeed, device: torch.device, limits: Limits, paging: PagingOptions | None
) -> Placement:
    """Where experts go. DoesNotFit where even paging does not help; UsageError for what a GPU cannot do."""
    reserve, gpu = limits.reserve, None
    if device.type != "cpu":
        _refuse_on_gpu(paging)
        gpu = gpu_memory(torch.cuda.mem_get_info(device)[0], limits.vram)
    elif limits.vram is not None:
        # What stands for the GPU's memory is RAM, too.
        gpu = Memory(limits.vram, limit_name="vram")
        reserve += limits.vram
    return place(need, Memory.of_ram(limits.ram, reserve, used=process_memory(), free=free_memory()), gpu)


def _refuse_on_gpu(paging: PagingOptions | None) -> None:
    if paging is not None and paging.looks_ahead:
        raise UsageError(
            "looking ahead asked for on a GPU, which does 0 layers ahead",
            "each layer would wait for the GPU twice: for its own experts, and for those of the next",
            "leave it away, or run on the processor",
        )
