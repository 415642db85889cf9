"""Loads a model in order of cost: options, checkpoint headers, memory, and only then weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec

from ernie_local import defaults
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.engine import check_token_counts
from ernie_local.errors import UsageError, parameter
from ernie_local.loading.build import build_model
from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.loading.options import (
    GpuChoices,
    LoadOptions,
    choose_dtype,
    choose_kv_dtype,
    find_bytes,
    find_device,
    find_limit,
    use_threads,
)
from ernie_local.loading.placing import ComputeDemand, MemoryLimits, count_need, find_paging, place_experts
from ernie_local.model_files import ModelFiles, find_model_files
from ernie_local.planner.fit import DEFAULT_RESERVE

_P = ParamSpec("_P")


def load_model(files: ModelFiles, options: LoadOptions) -> LoadedModel:
    """The model of these files in memory.

    Raises UsageError for an option that means nothing, ModelUnusable for a missing or corrupt model, and
    DoesNotFit, before any weight is read, for a device or kernels that are not there, a context beyond the
    model's, or memory that does not suffice.
    """
    started = time.perf_counter()
    config = files.config
    device = find_device(options.device)
    dtype = choose_dtype(options.dtype, files, device)
    kv_dtype = choose_kv_dtype(options.kv_dtype, dtype, is_packed=config.quantization is not None)
    limits, paging = _read_limits(options), options.paging()
    if limits.vram is not None and device.type == "cpu":
        raise UsageError(
            f"{parameter('vram', options.vram)} with {parameter('device', 'cpu')}, which uses 0 GPUs",
            f"it limits the memory of a GPU; that of the processor is limited by {parameter('ram')}",
            f"use {parameter('device', 'cuda')}, or {parameter('ram')} instead of {parameter('vram')}",
        )
    choices = GpuChoices.of(options.gpu_kernels, options.cuda_graphs, device)
    chunk_tokens = options.chunk_tokens
    tokens = defaults.context_tokens(options.context_size, config.text.max_position_embeddings)
    check_token_counts(tokens, 1 if chunk_tokens is None else chunk_tokens)
    demand = ComputeDemand(device, dtype, kv_dtype, tokens, chunk_tokens, choices.kernels)
    use_threads(options.threads)
    if demand.is_on_gpu:
        choices.check(config, device, kv_dtype)
    with open_checkpoint(files.directory, config) as checkpoint:
        need = count_need(checkpoint, files.image_processor, config, demand, limits, paging)
        placement = place_experts(need, device, limits)
        setup = find_paging(placement, device, paging)
        recorder = choices.recorder(device)
        network = build_model(checkpoint, config, dtype, device, setup, recorder, choices.kernels)
        if setup is not None:
            checkpoint.drop_cached()
    settings = EngineSettings(tokens, kv_dtype, placement.chunk_tokens)
    seconds = time.perf_counter() - started
    return LoadedModel(
        network, files, settings, need.weight_bytes, seconds, context_limit=options.context_size
    )


def _taking(
    options: Callable[_P, LoadOptions],
) -> Callable[Concatenate[str | Path | ModelFiles, _P], LoadedModel]:
    """`load` takes the fields of LoadOptions as keyword arguments; they are declared and described there."""

    def load(model: str | Path | ModelFiles, /, *arguments: _P.args, **keywords: _P.kwargs) -> LoadedModel:
        """Load a model into memory: a directory, `hf:org/name[@revision]`, or `nano`.

        The keyword arguments are the fields of `LoadOptions`, which describes them; errors as from
        `load_model`.
        """
        files = model if isinstance(model, ModelFiles) else find_model_files(model)
        return load_model(files, options(*arguments, **keywords))

    return load


load = _taking(LoadOptions)


def _read_limits(options: LoadOptions) -> MemoryLimits:
    ram = find_limit(options.ram, "ram")
    if options.reserve is not None and ram is not None:
        raise UsageError(
            f"{parameter('reserve', options.reserve)} with {parameter('ram', options.ram)}",
            "the first says how much of the free memory to leave, the second how much of it to take",
            "give one of them",
        )
    reserve = DEFAULT_RESERVE if options.reserve is None else find_bytes(options.reserve, "reserve")
    return MemoryLimits(ram, reserve, find_limit(options.vram, "vram"))
