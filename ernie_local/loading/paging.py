"""Experts of a checkpoint that are paged: their places in the files, how each is checked, and the memory.

Joins checkpoint and experts; how much memory there is, is said by the caller.
"""

from __future__ import annotations

import math

import torch

from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.parts import stored_tensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_level import PageLevel
from ernie_local.experts.page_math import PackedPageMath, PageMath, PlainPageMath
from ernie_local.experts.page_memory import PageMemory
from ernie_local.experts.page_store import PageCheck, PageRange, PageStore
from ernie_local.experts.paged import PagedExperts
from ernie_local.experts.paging_options import PagingOptions
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.model.moe import BANKS, Bank
from ernie_local.packing.checks import check_page
from ernie_local.planner import weights

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
    return weights.page_sizes(stored_tensors(checkpoint.accounts, config), config)


def _small_page_sizes(config: ModelConfig) -> dict[ExpertKey, int]:
    """Bytes of the small page of every text expert. Prompts use none, and pictures come in prompts."""
    tables = config.quantization
    if tables is None or not tables.small_experts:
        raise UsageError(
            "small pages are wanted for experts of little weight, this checkpoint has 0 of them",
            "each expert has one page, unless the checkpoint was made with two",
            "make one with `ernie-local quantize --dual`, or leave this choice away",
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
    memory_bytes: int,
    card_bytes: int | None = None,
    options: PagingOptions | None = None,
) -> PagedExperts:
    """Experts that share `memory_bytes`, at least the `least_bytes` of their plan, with conversations.

    card_bytes: of a second, faster memory above that one; then conversations share this.
    """
    plan = paging_plan(checkpoint, config, options)
    assert plan is not None, "only a model with experts is paged"
    ranges = page_ranges(checkpoint, config)
    if options is not None and options.small_below is not None:
        packed = PackedTensors(config)
        for key in _small_page_sizes(config):
            ranges[key] = _packed_ranges(checkpoint, packed, key)
    is_packed = _is_packed(config)
    store = PageStore(ranges, _packed_check(config) if is_packed else _plain_check(checkpoint))
    page_math: dict[Bank, PageMath] = {}
    for bank in BANKS:
        page_math[bank] = PackedPageMath() if is_packed else _plain_math(checkpoint, config, bank)

    def build_level(num_bytes: int) -> PageLevel:
        cache = plan.build(num_bytes)
        memory = PageMemory(cache.slots.num_frames * plan.frame_bytes)
        return PageLevel(cache, memory, page_math, store.experts)

    upper = None if card_bytes is None else build_level(card_bytes)
    shared_bytes = memory_bytes if card_bytes is None else card_bytes
    return PagedExperts(store, build_level(memory_bytes), plan, shared_bytes, upper, options)


def page_ranges(checkpoint: Checkpoint, config: ModelConfig) -> dict[ExpertKey, tuple[PageRange, ...]]:
    """Where the page of every expert lies."""
    ranges: dict[ExpertKey, tuple[PageRange, ...]] = {}
    packed = PackedTensors(config) if _is_packed(config) else None
    for layer_id, is_moe in enumerate(config.text.moe_layers):
        for bank in BANKS if is_moe else ():
            for expert_id in range(config.text.num_experts):
                key = ExpertKey(layer_id, bank, expert_id)
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


def _is_packed(config: ModelConfig) -> bool:
    return config.quantization is not None and bool(config.quantization.experts)


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


def _plain_math(checkpoint: Checkpoint, config: ModelConfig, bank: Bank) -> PlainPageMath:
    layer_id = config.text.moe_layers.index(True)
    name = _plain_names(ExpertKey(layer_id, bank, 0))[0]
    return PlainPageMath(checkpoint.dtype(name), config.text.hidden_size, config.text.expert_size(bank))
