"""Experts of a checkpoint that are paged: their places in the files, how each is checked, and the memory.

Joins checkpoint and experts; how much memory there is, is said by the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.parts import stored_tensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.miss_rule import MissRule
from ernie_local.experts.page_level import PageLevel
from ernie_local.experts.page_math import PackedPageMath, PageMath, PlainPageMath
from ernie_local.experts.page_memory import PageMemory
from ernie_local.experts.page_store import PageCheck, PageRange, PageStore
from ernie_local.experts.paged import PagedExperts, UpperLevel
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.model.moe import BANKS, Bank
from ernie_local.packing.checks import check_page
from ernie_local.planner import weights

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def paging_plan(checkpoint: Checkpoint, config: ModelConfig) -> PagingPlan | None:
    """How this checkpoint's pages would share a memory, None if there are none. Reads nothing."""
    page_bytes = page_sizes(checkpoint, config)
    return PagingPlan(page_bytes, config.text.experts_per_token) if page_bytes else None


def page_sizes(checkpoint: Checkpoint, config: ModelConfig) -> dict[ExpertKey, int]:
    """Bytes of every expert's page."""
    return weights.page_sizes(stored_tensors(checkpoint.accounts, config), config)


@dataclass(frozen=True, slots=True)
class CardMemory:
    """Bytes of a card, or what stands for one, that experts and conversations share; how misses are met."""

    num_bytes: int
    rule: MissRule


def page_experts(
    checkpoint: Checkpoint, config: ModelConfig, memory_bytes: int, card: CardMemory | None = None
) -> PagedExperts:
    """Experts that share `memory_bytes`, at least the `least_bytes` of their plan, with conversations.

    card: a second, faster memory above that one; then conversations share this.
    """
    plan = paging_plan(checkpoint, config)
    assert plan is not None, "only a model with experts is paged"
    ranges = page_ranges(checkpoint, config)
    is_packed = _is_packed(config)
    store = PageStore(ranges, _packed_check(config) if is_packed else _plain_check(checkpoint))
    page_math: dict[Bank, PageMath] = {}
    for bank in BANKS:
        page_math[bank] = PackedPageMath() if is_packed else _plain_math(checkpoint, config, bank)

    def build_level(num_bytes: int) -> PageLevel:
        cache = plan.build(num_bytes)
        memory = PageMemory(cache.slots.num_frames * plan.frame_bytes)
        return PageLevel(cache, memory, page_math, store.experts)

    if card is None:
        return PagedExperts(store, build_level(memory_bytes), plan, memory_bytes)
    upper = UpperLevel(build_level(card.num_bytes), card.rule)
    return PagedExperts(store, build_level(memory_bytes), plan, card.num_bytes, upper)


def page_ranges(checkpoint: Checkpoint, config: ModelConfig) -> dict[ExpertKey, tuple[PageRange, ...]]:
    """Where the page of every expert lies."""
    ranges: dict[ExpertKey, tuple[PageRange, ...]] = {}
    packed = PackedTensors(config) if _is_packed(config) else None
    for layer_id, is_moe in enumerate(config.text.moe_layers):
        for bank in BANKS if is_moe else ():
            places = packed.locate_experts(layer_id, bank) if packed is not None else None
            for expert_id in range(config.text.num_experts):
                key = ExpertKey(layer_id, bank, expert_id)
                if places is None:
                    ranges[key] = _plain_ranges(checkpoint, key)
                else:
                    name, row = places[expert_id]
                    stored = checkpoint.packed[name]
                    num_bytes = stored.shape[1]
                    offset = stored.offset + row * num_bytes
                    ranges[key] = (PageRange(stored.path, offset, 0, num_bytes),)
    return ranges


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
        name, row = packed.locate_experts(key.layer_id, key.bank)[key.expert_id]
        layout = packed.page_layouts(key.layer_id, key.bank)[name.rpartition(".")[2]]
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
