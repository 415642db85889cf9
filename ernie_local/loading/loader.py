"""Loads a model in order of cost: options, checkpoint headers, memory, and only then weights.

The arithmetic of memory is the planner's.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec

import torch

from ernie_local import defaults
from ernie_local.checkpoint.index import compression_notes
from ernie_local.checkpoint.parts import is_for_images, is_of_layers
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.experts.build import GpuShare, PagingSetup, paging_plan
from ernie_local.experts.device import CudaDevice, trim_heap
from ernie_local.experts.math import unpacking_room
from ernie_local.experts.options import PagingOptions
from ernie_local.kernels.gpu import capability_of, find_triton
from ernie_local.kernels.gpu_capability import multiplies_bfloat16
from ernie_local.loading.adapters import OpenedAdapters
from ernie_local.loading.build import build_model, checkpoint_weights, is_mapped
from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.loading.options import (
    WEIGHT_DTYPES,
    GpuChoices,
    LoadOptions,
    choose_dtype,
    choose_kv_dtype,
    dtype_name,
    find_bytes,
    find_device,
    find_limit,
    use_threads,
)
from ernie_local.media.image_size import ImageReport
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.host_parts import ALL_ON_GPU, HostParts
from ernie_local.model.kv_cache import KV_DTYPES
from ernie_local.model.limits import check_token_counts
from ernie_local.model.memory_use import gpu_attention_way
from ernie_local.model_files import (
    CompressedWeightsWarning,
    MissingFileWarning,
    ModelFiles,
    find_model_files,
)
from ernie_local.planner.fit import AvailableMemory, Placement, most_parallel, place
from ernie_local.planner.free_memory import free_memory, process_memory
from ernie_local.planner.gpu import host_process_bytes
from ernie_local.planner.gpu_fit import GpuPlacement, place_on_gpu
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.need import ChatPlan, MemoryNeed, chat_need
from ernie_local.planner.ram import process_bytes
from ernie_local.progress import OnProgress
from ernie_local.reuse.results import KeptResults, ModelCache
from ernie_local.sampling import model_sampling

_P = ParamSpec("_P")


def load_model(
    files: ModelFiles,
    options: LoadOptions,
    on_progress: OnProgress | None = None,
    images: Sequence[ImageReport] = (),
) -> LoadedModel:
    """The model of these files in memory.

    on_progress: gets "weights", bytes that were read, and bytes to read before this returns: packed layers on
    the CPU are read later. images: those of the first prompt, which this process has opened; room is left for
    them.
    UsageError for an option without a meaning, ModelUnusable for a missing or damaged model. DoesNotFit,
    before any weight is read, for a device or kernels that are not there, a context beyond the model's, or
    too little memory.
    """
    started = time.perf_counter()
    config = files.config
    files.check_listed()
    model_sampling(files.generation_config)  # what is wrong in it is told before the weights are read
    device = find_device(options.device)
    dtype = choose_dtype(options.dtype, files, device)
    kv_dtype = choose_kv_dtype(options.kv_dtype, dtype, is_packed=config.quantization is not None)
    limits, paging = MemoryLimits.of(options, device), options.paging()
    choices = GpuChoices.of(options.gpu_kernels, options.cuda_graphs, device)
    chunk_tokens, parallel = options.chunk_tokens, options.num_parallel(device)
    tokens = defaults.context_tokens(options.context_size, config.text.max_position_embeddings)
    check_token_counts(tokens, 1 if chunk_tokens is None else chunk_tokens)
    types = dtype_name(dtype), dtype_name(kv_dtype)
    chat = ChatPlan(tokens, *types, tuple(images), may_shrink_cache=options.kv_dtype == defaults.AUTO)
    demand = ComputeDemand(device, chat, chunk_tokens, choices.kernels)
    folder = options.open_cache()
    use_threads(options.threads, efficiency_cores=options.efficiency_cores)
    if demand.is_on_gpu:
        choices.check(config, device, KV_DTYPES[demand.kv_dtype])
        choices.check_adapters(config, options)
    adapters = OpenedAdapters.of(options.lora, config, dtype)
    with open_checkpoint(files.directory, config) as checkpoint:
        model = checkpoint, files.image_processor, config
        need_of = partial(count_need, *model, limits=limits, paging=paging, adapter_bytes=adapters.num_bytes)
        need = need_of(demand := _find_parallel(need_of, demand, limits, parallel))
        placement = _place(need, demand, limits)
        chosen = _choices(options, placement, adapters)
        cache = None if folder is None else ModelCache(folder, files.directory, chosen)
        if isinstance(placement, GpuPlacement):
            kv_dtype = KV_DTYPES[placement.layout.kv_dtype]
        setup = _find_paging(placement, device, paging)
        # Not before all is checked: a refusal has its three lines alone.
        _warn_of(files, compression_notes(config, checkpoint.accounts))
        if on_progress is not None:
            _report_reads(checkpoint, on_progress, setup, maps=is_mapped(config, device, setup))
        to_build = checkpoint, config, dtype, device, setup, choices.recorder(device), choices.kernels
        network = build_model(*to_build, _host_parts(placement), adapters.tables)
        if setup is not None:
            checkpoint.drop_cached()
    settings = EngineSettings(tokens, kv_dtype, placement.chunk_tokens, parallel=demand.chat.parallel)
    # Paged experts have the memory: a page helps every token, features only who asks about an image again.
    results = KeptResults(device, dtype, defaults.feature_bytes(placement.spare_bytes), cache)
    seconds = time.perf_counter() - started
    about = need.weight_bytes, seconds, options.context_size, results, placement.decisions
    return LoadedModel(network, files, settings, *about, adapters.notes)


def _warn_of(files: ModelFiles, compressed: Sequence[str]) -> None:
    """compressed: lines about weights that another tool has quantized."""
    for note in files.missing_notes():
        warnings.warn(note, MissingFileWarning, stacklevel=3)
    for note in compressed:
        warnings.warn(note, CompressedWeightsWarning, stacklevel=3)


def _host_parts(placement: Placement | GpuPlacement) -> HostParts:
    return placement.layout.host if isinstance(placement, GpuPlacement) else ALL_ON_GPU


def _choices(options: LoadOptions, placement: Placement | GpuPlacement, adapters: OpenedAdapters) -> str:
    """What changes the bits that are computed; experts give the same ones wherever they are.

    Attention rounds otherwise on the CPU than on a GPU.
    """
    chosen = f"{options.small_below} {options.gpu_kernels} {_host_parts(placement).num_layers}"
    # Without adapters it is as it has always been, so that what was kept before is found.
    return f"{chosen} {adapters.digest()}" if adapters.notes else chosen


def _report_reads(
    checkpoint: Checkpoint, on_progress: OnProgress, paging: PagingSetup | None, *, maps: bool
) -> None:
    """Report what is read before `load_model` ends: nothing paged or swapped, no packed layers if mapped."""
    sizes = {name: source.num_bytes for name, source in checkpoint.accounts.sources.items()}
    sizes |= {name: tensor.num_bytes for name, tensor in checkpoint.packed.items()}

    def is_read_now(name: str) -> bool:
        if name.startswith("small_experts."):
            return False  # only paging uses them
        if name.startswith("experts."):
            return paging is None and not maps
        if maps and is_of_layers(name) and name in checkpoint.packed:
            return False  # in the background
        return paging is None or not (paging.swaps_image_weights and is_for_images(name))

    total = sum(size for name, size in sizes.items() if is_read_now(name))
    num_read, reporting = 0, threading.Lock()

    def report(num_bytes: int) -> None:
        nonlocal num_read
        with reporting:  # several threads read
            num_read += num_bytes
            on_progress("weights", num_read, total)

    checkpoint.on_read = report


def _taking(
    options: Callable[_P, LoadOptions],
) -> Callable[Concatenate[str | Path | ModelFiles, _P], LoadedModel]:
    """Make `load`, whose keyword arguments are the fields of LoadOptions and need not be repeated here."""

    def load(model: str | Path | ModelFiles, /, *arguments: _P.args, **keywords: _P.kwargs) -> LoadedModel:
        """Load a model into memory: a directory, `hf:org/name[@revision]`, or `nano`.

        The keyword arguments are the fields of `LoadOptions`, which describes them; errors as from
        `load_model`. Nothing is said while a model is downloaded: to see how far it is, pass what
        `find_model_files(model, on_progress)` returns.
        """
        files = model if isinstance(model, ModelFiles) else find_model_files(model)
        return load_model(files, options(*arguments, **keywords))

    return load


load = _taking(LoadOptions)


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bytes. ram: of the process, by default what is free less `reserve`, None for the default one. vram: of
    a GPU, by default what is free there less a headroom."""

    ram: int | None
    reserve: int | None
    vram: int | None

    @staticmethod
    def of(options: LoadOptions, device: torch.device) -> MemoryLimits:
        """UsageError for sizes that mean nothing, on this device or together."""
        ram = find_limit(options.ram, "ram")
        if options.reserve is not None and ram is not None:
            raise UsageError(
                f"{parameter('reserve', options.reserve)} with {parameter('ram', options.ram)}",
                "the first says how much of the free memory to leave, the second how much of it to take",
                "give one of them",
            )
        reserve = None if options.reserve is None else find_bytes(options.reserve, "reserve", least=0)
        vram = find_limit(options.vram, "vram")
        if vram is not None and device.type == "cpu":
            raise UsageError(
                f"{parameter('vram', options.vram)} with {parameter('device', 'cpu')}, which uses 0 GPUs",
                f"it limits the memory of a GPU; that of the processor is limited by {parameter('ram')}",
                f"use {parameter('device', 'cuda')}, or {parameter('ram')} instead of {parameter('vram')}",
            )
        return MemoryLimits(ram, reserve, vram)

    def find_ram(self, least_used: int) -> AvailableMemory:
        """The RAM for this process, which counts as at least `least_used`, as `vram` assumes of a new one."""
        trim_heap()  # of what opening images has left
        now = process_memory()
        used = max(now, least_used)
        free = max(0, free_memory() - (used - now))
        return AvailableMemory.of_ram(self.ram, self.reserve, used=used, free=free)


@dataclass(frozen=True, slots=True)
class ComputeDemand:
    """What is asked for: where to compute, in which types, and which chat."""

    device: torch.device
    chat: ChatPlan
    chunk_tokens: int | None
    gpu_kernels: str = "auto"

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.device.type != "cpu"

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether the device does."""
        return multiplies_bfloat16(capability_of(self.device))

    @property
    def kv_dtype(self) -> str:
        """Of the KV cache on this GPU, if it has room."""
        return self.chat.kv_dtype_on_gpu(multiplies_bfloat16=self.multiplies_bfloat16)

    @property
    def process_bytes(self) -> int:
        """What `vram` assumes of a process before weights are read."""
        return host_process_bytes(self.chat) if self.is_on_gpu else process_bytes(self.chat)


def count_need(
    checkpoint: Checkpoint,
    processor: ImageProcessorConfig,
    config: ModelConfig,
    demand: ComputeDemand,
    limits: MemoryLimits,
    paging: PagingOptions | None,
    adapter_bytes: int = 0,
) -> MemoryNeed | GpuNeed:
    """The memory that the checkpoint, adapters and a conversation take, of a GPU where that computes.

    No weight is read.
    """
    dtype = WEIGHT_DTYPES[demand.chat.dtype]
    weights = checkpoint_weights(checkpoint, config, dtype, in_slots=demand.is_on_gpu)
    weights = weights.with_adapters(adapter_bytes)
    plan = paging_plan(checkpoint, config, paging)
    if demand.is_on_gpu:
        has_triton = find_triton(demand.device, demand.gpu_kernels) is not None
        return GpuNeed(
            config=config,
            chat=demand.chat,
            weights=weights,
            plan=plan,
            # Kept for as long as the weights are, and for nothing else.
            scratch_bytes=unpacking_room(config, demand.device, demand.gpu_kernels),
            chunk_tokens=demand.chunk_tokens,
            attention=gpu_attention_way(has_triton=has_triton),
            multiplies_bfloat16=demand.multiplies_bfloat16,
        )
    need = replace(MemoryNeed.of_weights(config.text, weights, plan), chunk_tokens=demand.chunk_tokens)
    return chat_need(need, config, processor, demand.chat, limits.ram)


def _find_parallel(
    need_of: Callable[[ComputeDemand], MemoryNeed | GpuNeed],
    demand: ComputeDemand,
    limits: MemoryLimits,
    asked: int | None,
) -> ComputeDemand:
    """The demand for as many chats at once as were asked for; None: as many as suit the memory."""

    def of(parallel: int) -> ComputeDemand:
        return replace(demand, chat=replace(demand.chat, parallel=parallel))

    def ram_need(parallel: int) -> MemoryNeed:
        need = need_of(of(parallel))
        assert isinstance(need, MemoryNeed), "a GPU has one chat"
        return need

    if asked is None:
        asked = most_parallel(ram_need, limits.find_ram(demand.process_bytes), defaults.MOST_PARALLEL)
    return of(asked)


def _place(
    need: MemoryNeed | GpuNeed, demand: ComputeDemand, limits: MemoryLimits
) -> Placement | GpuPlacement:
    if isinstance(need, MemoryNeed):
        return place(need, limits.find_ram(demand.process_bytes))
    gpu = AvailableMemory.of_gpu(torch.cuda.mem_get_info(demand.device)[0], limits.vram)
    return place_on_gpu(need, limits.find_ram(demand.process_bytes), gpu)


def _find_paging(
    placement: Placement | GpuPlacement, device: torch.device, options: PagingOptions
) -> PagingSetup | None:
    """How the placed experts are paged; None if all of them are in memory."""
    if placement.paged_bytes is None:
        return None
    gpu: GpuShare | None = None
    if isinstance(placement, GpuPlacement):
        gpu = GpuShare(
            CudaDevice(device),
            placement.shared_bytes,
            placement.least_bytes,
            placement.cache_bytes,
            placement.room_bytes,
            placement.host_cache_bytes,
        )
    return PagingSetup(placement.paged_bytes, options, gpu, placement.swapped_bytes > 0)
