"""Assembles paged experts: from a checkpoint and numbers of bytes to the provider that a model asks.

The only place where all parts of paging are put together:

    PageStore -> DiskReader -> RAM (PageLevel) -> PageCopier -> GPU (PageLevel)
                 decided by PageTraffic,          decided by TwoLevels over both memories' PageTraffic
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import BankKey, ModelConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.experts.budget import GpuBudget, RamBudget
from ernie_local.experts.device import CudaDevice, PageMemory
from ernie_local.experts.gpu_memory import allocate_pages
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel
from ernie_local.experts.math import PageMath
from ernie_local.experts.options import PagingOptions, PagingStats
from ernie_local.experts.paged import GpuTier, PagedExperts, RamTier
from ernie_local.experts.plan import PagingPlan
from ernie_local.experts.readers import DiskReader, PageCheck, PageCopier, PageRange, PageStore
from ernie_local.experts.traffic import PageTraffic
from ernie_local.experts.two_levels import PinningReader, TwoLevels
from ernie_local.packing.page import check_page
from ernie_local.sizes import aligned

# What computes experts of each layer and bank from pages on this device.
MathOn = Callable[[torch.device], Mapping[BankKey, PageMath]]


class GpuShare(NamedTuple):
    """What paging has of a GPU.

    num_bytes: for pages, one KV cache, and room_bytes of workspace. least_bytes: of that, what a conversation
    and one token's experts take; cache_bytes: the largest cache. host_cache_bytes: of RAM, for the rows of
    layers that attend there.
    """

    device: CudaDevice
    num_bytes: int
    least_bytes: int
    cache_bytes: int
    room_bytes: int
    host_cache_bytes: int = 0


class PagingSetup(NamedTuple):
    """What paging has, and how it is to page. ram_bytes: at least the plan's `least_bytes`.

    swaps_image_weights: whether experts have the memory of vision tower and resampler between images.
    """

    ram_bytes: int
    options: PagingOptions = PagingOptions()
    gpu: GpuShare | None = None
    swaps_image_weights: bool = False


def build_paged_experts(
    store: PageStore, plan: PagingPlan, math_on: MathOn, setup: PagingSetup
) -> PagedExperts:
    """Experts in RAM, and in a GPU above if there is one. plan: of the store's pages.

    DoesNotFit if the GPU has less memory than it reported, and too little for one token.
    """
    options, gpu, sizes = setup.options, setup.gpu, plan.page_bytes
    cache = plan.build_cache(setup.ram_bytes)
    memory = PageMemory(cache.slots.num_frames * plan.frame_bytes)
    level = PageLevel(cache, memory, math_on(torch.device("cpu")), sizes)
    disk = DiskReader(store, level)
    stats = PagingStats(gpu=None if gpu is None else PagingStats())
    traffic = PageTraffic(cache, plan, disk, stats)
    ram = RamTier(level, traffic, disk)
    if gpu is None:
        return PagedExperts(store, ram, RamBudget(level, plan, setup.ram_bytes), options)

    beside = max(gpu.cache_bytes + gpu.room_bytes, gpu.least_bytes - plan.least_bytes)
    wanted = min(gpu.num_bytes, aligned(plan.most_bytes + beside, plan.frame_bytes))
    memory_above = allocate_pages(gpu.device, wanted, gpu.least_bytes, gpu.room_bytes, plan.frame_bytes)
    cache_above = plan.build_cache(memory_above.num_bytes, is_shared=True)
    math_above = math_on(memory_above.bytes.device)
    level_above = PageLevel(cache_above, memory_above, math_above, sizes, gpu.device)
    copier = PageCopier(level_above, level, disk, gpu.device)
    traffic_above = PageTraffic(cache_above, plan, PinningReader(traffic, copier), stats.gpu)
    both = TwoLevels(traffic_above, traffic, options.miss_rule)
    tier = GpuTier(level_above, memory_above, both, copier, gpu.device, gpu.device.lock(memory))
    beside_pages = gpu.room_bytes, gpu.host_cache_bytes
    budget = GpuBudget(level_above, level, traffic_above, plan, *beside_pages)
    return PagedExperts(store, ram, budget, options, tier)


def paging_plan(
    checkpoint: Checkpoint, config: ModelConfig, options: PagingOptions | None = None
) -> PagingPlan | None:
    """How this checkpoint's pages would share a memory; None without experts that can be paged.

    Reads only headers. UsageError for options that ask for small pages of a checkpoint without them.
    """
    if any(checkpoint.is_compressed(name) for name in checkpoint.names() if name.startswith("experts.")):
        return None  # the bytes of a page are computed with as they are in the files
    sizes = stored_page_bytes(checkpoint, config, options)
    return PagingPlan(sizes, config.text.experts_per_token) if sizes else None


def stored_page_bytes(
    checkpoint: Checkpoint, config: ModelConfig, options: PagingOptions | None = None
) -> dict[ExpertKey, int]:
    """Bytes of every expert's page, and of small pages if the options ask for them."""
    ranges = page_ranges(checkpoint, config, options)
    return {key: sum(part.num_bytes for part in parts) for key, parts in ranges.items()}


def open_page_store(
    checkpoint: Checkpoint, config: ModelConfig, options: PagingOptions | None = None
) -> PageStore:
    """The checkpoint's pages on disk. Each is checked when it is first read."""
    if config.has_packed_experts:
        check: PageCheck = partial(_check_packed, PackedTensors(config))
    else:
        check = partial(_check_plain, checkpoint)
    return PageStore(page_ranges(checkpoint, config, options), check)


def page_ranges(
    checkpoint: Checkpoint, config: ModelConfig, options: PagingOptions | None = None
) -> dict[ExpertKey, tuple[PageRange, ...]]:
    """Where the page of every expert lies, and its small page if the options ask for it."""
    banks = [(layer_id, bank.name, False) for layer_id, bank in config.text.layer_banks()]
    if options is not None and options.small_below is not None:
        banks += [(layer_id, bank, True) for layer_id, bank in _banks_with_small_pages(config)]
    packed = PackedTensors(config) if config.has_packed_experts else None
    ranges: dict[ExpertKey, tuple[PageRange, ...]] = {}
    for layer_id, bank, is_small in banks:
        num_experts = config.text.bank(bank).num_experts
        keys = [ExpertKey(layer_id, bank, expert_id, is_small) for expert_id in range(num_experts)]
        if packed is None:
            ranges |= {key: tuple(part for _, part in _plain_parts(checkpoint, key)) for key in keys}
            continue
        for key, (name, row) in zip(keys, packed.locate_experts(layer_id, bank, small=is_small), strict=True):
            stored = checkpoint.packed[name]
            num_bytes = stored.shape[1]
            ranges[key] = (PageRange(stored.path, stored.offset + row * num_bytes, 0, num_bytes),)
    return ranges


def _banks_with_small_pages(config: ModelConfig) -> list[BankKey]:
    """Of text experts: prompts use no small pages, and images come in prompts."""
    tables = config.quantization
    if tables is None or not tables.small_experts:
        raise UsageError(
            "small pages are asked for, for experts of little weight; this checkpoint has 0 of them",
            "each expert has one page, unless the checkpoint was made with two",
            f"make one with `ernie-local quantize --dual`, or omit {parameter('small_below')}",
        )
    return [key for key in tables.small_experts if key[1] == "text"]


def _plain_parts(checkpoint: Checkpoint, key: ExpertKey) -> Iterator[tuple[str, PageRange]]:
    """The tensors of an expert, one after the other in its page, by their names."""
    page_offset = 0
    for projection in PROJECTIONS:
        name = f"experts.{key.layer_id}.{key.bank}.{key.expert_id}.{projection}"
        path, offset, num_bytes = checkpoint.place(name)
        yield name, PageRange(path, offset, page_offset, num_bytes)
        page_offset += num_bytes


def _check_plain(checkpoint: Checkpoint, key: ExpertKey, page: torch.Tensor) -> None:
    for name, part in _plain_parts(checkpoint, key):
        checkpoint.check_values(name, page[part.page_offset :][: part.num_bytes])


def _check_packed(packed: PackedTensors, key: ExpertKey, page: torch.Tensor) -> None:
    name, row = packed.locate_experts(key.layer_id, key.bank, small=key.is_small)[key.expert_id]
    layout = packed.page_layouts(key.layer_id, key.bank, small=key.is_small)[name.rpartition(".")[2]]
    check_page(page, layout, f"page {row} of {name}")
