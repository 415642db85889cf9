"""Experts of a checkpoint that are paged: their places in the files, how each is checked, and the memory.

Joins checkpoint and experts; how much memory there is, is said by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.parts import stored_tensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import Bank, ModelConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.experts.budget import GpuRoom, Room, SharedRoom
from ernie_local.experts.device import Gpu
from ernie_local.experts.disk import PageCheck, PageRange, PageStore
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel
from ernie_local.experts.memory import PageMemory, allocate_pages
from ernie_local.experts.options import PagingOptions
from ernie_local.experts.page_math import PageMath
from ernie_local.experts.paged import PagedExperts
from ernie_local.experts.plan import PagingPlan
from ernie_local.loading.expert_math import expert_math
from ernie_local.packing.checks import check_page
from ernie_local.planner.fit import Placement
from ernie_local.planner.need import expert_page_sizes

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def paging_plan(
    checkpoint: Checkpoint, config: ModelConfig, options: PagingOptions | None = None
) -> PagingPlan | None:
    """How this checkpoint's pages would share a memory, None if there are none. Reads nothing.

    UsageError for options that want small pages of a checkpoint without.
    """
    page_bytes = page_sizes(checkpoint, config)
    if options is not None and options.small_below is not None:
        page_bytes |= _small_page_sizes(config)
    return PagingPlan(page_bytes, config.text.experts_per_token) if page_bytes else None


def page_sizes(checkpoint: Checkpoint, config: ModelConfig) -> dict[ExpertKey, int]:
    """Bytes of every expert's page."""
    return expert_page_sizes(stored_tensors(checkpoint.accounts, config), config)


def _small_page_sizes(config: ModelConfig) -> dict[ExpertKey, int]:
    """Bytes of the small page of every text expert. Prompts use none, and images come in prompts."""
    tables = config.quantization
    if tables is None or not tables.small_experts:
        raise UsageError(
            f"{parameter('small_below')} was given, but this checkpoint has 0 small pages of experts",
            "each expert has one page, unless the checkpoint was made with two",
            f"make one with `ernie-local quantize --dual`, or remove {parameter('small_below')}",
        )
    packed = PackedTensors(config)
    return {
        ExpertKey(layer_id, bank, expert_id, is_small=True): packed.shapes[name][1]
        for layer_id, bank in tables.small_experts
        if bank == "text"
        for expert_id, (name, _) in enumerate(packed.locate_experts(layer_id, bank, small=True))
    }


def page_experts(
    checkpoint: Checkpoint,
    config: ModelConfig,
    placement: Placement,
    options: PagingOptions | None = None,
    gpu: Gpu | None = None,
) -> PagedExperts:
    """Experts in memory of `placement`, which is at least the `least_bytes` of their plan.

    GPU: what the upper of two memories is on; None where it is the processor's too. DoesNotFit where the
    GPU has not got what one token needs, although it was said to.
    """
    plan = paging_plan(checkpoint, config, options)
    assert plan is not None, "only a model with experts is paged"
    assert placement.paged_bytes is not None
    ranges = page_ranges(checkpoint, config)
    if options is not None and options.small_below is not None:
        packed = PackedTensors(config)
        for key in _small_page_sizes(config):
            ranges[key] = _packed_ranges(checkpoint, packed, key)
    store = PageStore(
        ranges, _packed_check(config) if config.has_packed_experts else _plain_check(checkpoint)
    )
    sizes = {key: store.page_bytes(key) for key in store.experts}
    computing = expert_math(checkpoint, config, torch.device("cpu"))
    level = _build_level(plan, placement.paged_bytes, computing, sizes)
    if placement.gpu_bytes is None:
        room: Room = SharedRoom(level, plan, placement.paged_bytes)
        return PagedExperts(store, level, plan, room, options=options)
    if gpu is None:
        upper = _build_level(plan, placement.gpu_bytes, computing, sizes)
        room = SharedRoom(upper, plan, placement.gpu_bytes)
        return PagedExperts(store, level, plan, room, upper, options)
    assert placement.gpu_room_bytes is not None
    assert placement.gpu_cache_bytes is not None
    cache_bytes = placement.gpu_cache_bytes
    wanted = min(placement.gpu_bytes, plan.most_bytes + cache_bytes)
    # The allocation is of whole frames, the cache is not.
    least = plan.frame_bytes * (plan.least_frames + -(-cache_bytes // plan.frame_bytes))
    memory = allocate_pages(gpu.allocate, wanted, least, placement.gpu_room_bytes, plan.frame_bytes)
    computing_there = expert_math(checkpoint, config, memory.bytes.device)
    upper = PageLevel(plan.build(memory.num_bytes), memory, computing_there, sizes, gpu)
    assert isinstance(level.memory, PageMemory)
    page_lock = gpu.lock(level.memory)
    room = GpuRoom(upper, plan, placement.gpu_room_bytes)
    return PagedExperts(store, level, plan, room, upper, options, gpu, page_lock)


def _build_level(
    plan: PagingPlan, num_bytes: int, computing: Mapping[Bank, PageMath], page_bytes: Mapping[ExpertKey, int]
) -> PageLevel:
    """In memory of the processor."""
    cache = plan.build(num_bytes)
    memory = PageMemory(cache.slots.num_frames * plan.frame_bytes)
    return PageLevel(cache, memory, computing, page_bytes)


def page_ranges(checkpoint: Checkpoint, config: ModelConfig) -> dict[ExpertKey, tuple[PageRange, ...]]:
    """Where the page of every expert lies."""
    ranges: dict[ExpertKey, tuple[PageRange, ...]] = {}
    packed = PackedTensors(config) if config.has_packed_experts else None
    for layer_id, bank in config.text.layer_banks():
        for expert_id in range(bank.num_experts):
            key = ExpertKey(layer_id, bank.name, expert_id)
            if packed is None:
                ranges[key] = _plain_ranges(checkpoint, key)
            else:
                ranges[key] = _packed_ranges(checkpoint, packed, key)
    return ranges


def _packed_ranges(checkpoint: Checkpoint, packed: PackedTensors, key: ExpertKey) -> tuple[PageRange]:
    name, row = packed.locate_experts(key.layer_id, key.bank, small=key.is_small)[key.expert_id]
    stored = checkpoint.packed[name]
    num_bytes = stored.shape[1]
    return (PageRange(stored.path, stored.offset + row * num_bytes, 0, num_bytes),)


def _plain_ranges(checkpoint: Checkpoint, key: ExpertKey) -> tuple[PageRange, ...]:
    parts: list[PageRange] = []
    page_offset = 0
    for name in _plain_names(key):
        path, offset, num_bytes = checkpoint.place(name)
        parts.append(PageRange(path, offset, page_offset, num_bytes))
        page_offset += num_bytes
    return tuple(parts)


def _plain_names(key: ExpertKey) -> list[str]:
    return [f"experts.{key.layer_id}.{key.bank}.{key.expert_id}.{part}" for part in _PROJECTIONS]


def _packed_check(config: ModelConfig) -> PageCheck:
    packed = PackedTensors(config)

    def check(key: ExpertKey, page: torch.Tensor) -> None:
        name, row = packed.locate_experts(key.layer_id, key.bank, small=key.is_small)[key.expert_id]
        layout = packed.page_layouts(key.layer_id, key.bank, small=key.is_small)[name.rpartition(".")[2]]
        check_page(page, layout, f"page {row} of {name}")

    return check


def _plain_check(checkpoint: Checkpoint) -> PageCheck:
    def check(key: ExpertKey, page: torch.Tensor) -> None:
        start = 0
        for name in _plain_names(key):
            num_bytes = math.prod(checkpoint.shape(name)) * checkpoint.dtype(name).itemsize
            checkpoint.check_values(name, page[start : start + num_bytes])
            start += num_bytes

    return check
