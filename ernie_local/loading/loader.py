"""Loads a model: checks options, config, headers and memory, and only then reads weights."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ernie_local.checkpoint.hub import resolve_model
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import check_sizes
from ernie_local.errors import UsageError
from ernie_local.experts.options import PagingOptions
from ernie_local.loading.build import build_model
from ernie_local.loading.gpu_choices import GpuChoices
from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.loading.options import WEIGHT_DTYPES, find_bytes, find_device, find_dtype, find_kv_dtype
from ernie_local.loading.placing import ComputeDemand, MemoryLimits, count_need, find_paging, place
from ernie_local.planner.placement import DEFAULT_RESERVE


def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    ram: str | int | None = None,
    reserve: str | int | None = None,
    vram: str | int | None = None,
    paging: PagingOptions | None = None,
    context_size: int | None = None,
    kv_dtype: str | torch.dtype | None = None,
    chunk_tokens: int | None = None,
    gpu_kernels: str = "auto",
    cuda_graphs: str = "auto",
) -> LoadedModel:
    """Load a model into memory.

    model: a directory, `hf:org/name[@revision]`, or `nano`. device: cpu, cuda or cuda:N. dtype: float32 or
    bfloat16. ram: what the whole process may have, such as "6GiB" or a number of bytes, or "auto": what is
    free, less `reserve` (1 GiB). Where not all routed experts fit, they are paged from disk. vram: what may
    be taken of a GPU, by default what is free there less a headroom; experts that do not fit there are paged
    through `ram`. paging: what else can be chosen about it. context_size: most tokens of a conversation, by
    default the model's own limit but at most 32768. kv_dtype: float32, float16, bfloat16 or int8, by default
    dtype, or bfloat16 where weights are packed. chunk_tokens: most tokens computed at a time in a prompt, by
    default 2048 or what the memory allows. gpu_kernels: what computes packed weights on a GPU: triton, torch
    (slower; for comparing), or auto, which is triton where that runs and says so where it does not.
    cuda_graphs: on records what a decoded token computes on a GPU beside routed experts, and replays it; auto
    is off.

    Raises UsageError for an argument that means nothing, ModelUnusable for a missing or corrupt model, and
    DoesNotFit, before any weight is read, for a device or kernels that are not there or memory that does not
    suffice.
    """
    started = time.perf_counter()
    torch_device = find_device(device)
    weight_dtype = find_dtype(dtype, "dtype", WEIGHT_DTYPES)
    cache_dtype = find_kv_dtype(kv_dtype, weight_dtype)
    limits = _read_limits(ram, reserve, vram)
    if limits.vram is not None and torch_device.type == "cpu":
        raise UsageError(
            f"vram {vram} with device cpu, where 0 bytes of a GPU are used",
            "vram limits the memory of a GPU; the processor's is limited by ram",
            'load with device="cuda", or omit vram and give ram instead',
        )
    check_sizes(1 if context_size is None else context_size, 1 if chunk_tokens is None else chunk_tokens)
    choices = GpuChoices.of(gpu_kernels, cuda_graphs, torch_device)
    directory = resolve_model(str(model))
    config = read_config(directory)
    if kv_dtype is None and config.quantization is not None:
        cache_dtype = torch.bfloat16  # what the model was trained in; its weights have fewer bits
    tokens = config.text.default_context_size if context_size is None else context_size
    demand = ComputeDemand(torch_device, weight_dtype, cache_dtype, tokens, chunk_tokens)
    if demand.is_on_gpu:
        choices.apply(config, torch_device, cache_dtype)
    with open_checkpoint(directory, config) as checkpoint:
        need = count_need(checkpoint, directory, config, demand, limits, paging)
        placement = place(need, config, demand, limits)
        setup = find_paging(placement, torch_device, paging)
        recorder = choices.recorder(torch_device)
        network = build_model(checkpoint, config, weight_dtype, torch_device, setup, recorder)
        if demand.is_on_gpu:
            choices.keep(network)
        if setup is not None:
            checkpoint.drop_cached()
    settings = EngineSettings(tokens, cache_dtype, placement.chunk_tokens)
    seconds = time.perf_counter() - started
    return LoadedModel(network, directory, settings, need.weight_bytes, seconds, context_limit=context_size)


def _read_limits(ram: str | int | None, reserve: str | int | None, vram: str | int | None) -> MemoryLimits:
    limit = None if ram == "auto" else find_bytes(ram, "ram")
    if reserve is not None and limit is not None:
        raise UsageError(
            f"reserve {reserve} with ram {ram}",
            "reserve is what to leave of the free memory, ram is how much to take of it",
            "give only one of them",
        )
    left_to_others = DEFAULT_RESERVE if reserve is None else find_bytes(reserve, "reserve")
    return MemoryLimits(limit, left_to_others, find_bytes(vram, "vram"))
