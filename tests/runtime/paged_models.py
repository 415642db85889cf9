"""Builds nano with paged experts, with or without a simulated GPU, and has it talk."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import ModelConfig, read_config
from ernie_local.engine import Engine
from ernie_local.experts.build import (
    GpuShare,
    MathOn,
    PagingSetup,
    build_paged_experts,
    open_page_store,
    paging_plan,
)
from ernie_local.experts.math import expert_math
from ernie_local.experts.options import PagingOptions
from ernie_local.experts.paged import PagedExperts
from ernie_local.experts.plan import PagingPlan
from ernie_local.loading.build import build_model, build_without_experts
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.memory_use import KVSize, attention_bytes, encoding_bytes, grown_tokens
from ernie_local.sizes import aligned
from tests.runtime.fake_gpu import FakeGpu, watched_math

CONTEXT_SIZE = 512
GPU_ROOM = 64 << 20


def room(model: ErnieModel) -> int:
    """What a conversation of CONTEXT_SIZE tokens with small images takes of the experts' memory."""
    small = [256, 256]  # patches of two images of 64 tokens
    images = encoding_bytes(model.config.vision, small) + (1 << 20)
    return Engine(model, CONTEXT_SIZE).kv_cache_bytes + attended_bytes(model, 256) + images


def attended_bytes(model: ErnieModel, num_tokens: int) -> int:
    """What attention takes of a prompt of so many tokens that is computed at once."""
    return attention_bytes(model.config.text, num_tokens, num_tokens, model.attention_way)


@cache
def plan_of(directory: Path) -> PagingPlan:
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        plan = paging_plan(checkpoint, config)
    assert plan is not None
    return plan


def gpu_cache_bytes(config: ModelConfig, num_tokens: int, context_size: int = CONTEXT_SIZE) -> int:
    """What a cache that grows takes of a GPU, in float32, when it holds so many tokens of `context_size`."""
    return KVSize.of(config.text, grown_tokens(num_tokens, context_size), 4).num_bytes


def share(directory: Path, of: float) -> int:
    """Bytes for experts: the least, and this share of what is above it."""
    plan = plan_of(directory)
    return plan.least_bytes + int(of * (plan.most_bytes - plan.least_bytes))


@cache
def without_experts(directory: Path) -> ErnieModel:
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        return build_without_experts(checkpoint, config, torch.float32, torch.device("cpu"))


def build(
    directory: Path, ram_bytes: int | None, paging: PagingOptions | None = None, gpu: GpuShare | None = None
) -> ErnieModel:
    """On the processor. ram_bytes: for paged experts; None for all of them in memory.

    Models of one directory with paged experts share all other weights.
    """
    config, options = read_config(directory), PagingOptions() if paging is None else paging
    with open_checkpoint(directory, config) as checkpoint:
        if ram_bytes is None:
            return build_model(checkpoint, config, torch.float32, torch.device("cpu"))
        model = copy.copy(without_experts(directory))
        store, plan = open_page_store(checkpoint, config, options), paging_plan(checkpoint, config, options)
        assert plan is not None
        math_on: MathOn = partial(expert_math, checkpoint, config)
        if gpu is not None:
            assert isinstance(gpu.device, FakeGpu)
            math_on = watched_math(math_on, gpu.device, store.page_bytes)
        model.attach(build_paged_experts(store, plan, math_on, PagingSetup(ram_bytes, options, gpu)))
        return model


def gpu_share(directory: Path, gpu: FakeGpu, expert_bytes: int, context_size: int = CONTEXT_SIZE) -> GpuShare:
    """Of a GPU, these bytes for experts besides workspace and the cache of a full context."""
    cache_bytes = gpu_cache_bytes(read_config(directory), context_size, context_size)
    beside, plan = cache_bytes + GPU_ROOM, plan_of(directory)
    num_bytes, least = (aligned(one + beside, plan.frame_bytes) for one in (expert_bytes, plan.least_bytes))
    return GpuShare(gpu, num_bytes, least, cache_bytes, GPU_ROOM)


def ids(count: int, seed: int) -> list[int]:
    """Random text tokens."""
    return torch.randint(10, 400, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def paged_experts(model: ErnieModel) -> PagedExperts:
    assert isinstance(model.experts, PagedExperts)
    return model.experts


def image(model: ErnieModel, rows: int, columns: int, seed: int = 0) -> Patches:
    """Random patches that become rows x columns tokens."""
    vision = model.config.vision
    merge = vision.spatial_merge_size
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows * columns * merge**2, vision.patch_values, generator=generator)
    size = (columns * merge * vision.patch_size, rows * merge * vision.patch_size)
    return Patches(values, (1, rows * merge, columns * merge), size, size, rows * columns)


def image_ids(model: ErnieModel, patches: Patches) -> list[int]:
    media = model.config.media
    return [media.image_start, *[media.image] * patches.num_tokens, media.image_end]


def num_frames(model: ErnieModel) -> int:
    """Frames that experts have now, of the fastest memory."""
    return paged_experts(model).top.cache.slots.num_frames


def image_prompt(model: ErnieModel, seed: int, num_images: int = 1) -> tuple[list[int], list[Patches]]:
    """Images of 3 x 4 tokens, and a short text."""
    images = [image(model, 3, 4, seed + number) for number in range(num_images)]
    return [*(token for one in images for token in image_ids(model, one)), *ids(7, seed)], images


def talk_of_images(model: ErnieModel, text_tokens: int, answer_tokens: int) -> torch.Tensor:
    """An image, text, a late image, text, a step back, and two images at once: logits of all."""
    engine = Engine(model, 400, chunk_tokens=50)
    rows = [engine.prefill(*image_prompt(model, 1)), *map(engine.decode, ids(answer_tokens, 2))]
    rows += [engine.prefill(ids(text_tokens, 3)), *map(engine.decode, ids(answer_tokens, 4))]
    back = engine.mark()
    rows += [engine.prefill(*image_prompt(model, 5)), *map(engine.decode, ids(answer_tokens, 6))]
    engine.rewind(back)
    rows += [engine.prefill(ids(9, 7)), engine.prefill(*image_prompt(model, 8, 2)), engine.decode(50)]
    return torch.stack(rows)


def answer_logits(
    model: ErnieModel,
    turns: Sequence[tuple[Sequence[int], Sequence[Patches], Sequence[int]]],
    chunk_tokens: int = 2048,
) -> torch.Tensor:
    """Logits behind every prompt and every decoded token of a conversation, a row each.

    turns: ids of the prompt with placeholders expanded, its images, and the tokens that are decoded.
    """
    engine = Engine(model, CONTEXT_SIZE, chunk_tokens=chunk_tokens)
    rows = []
    for prompt, images, answer in turns:
        rows.append(engine.prefill(prompt, images))
        rows.extend(engine.decode(token) for token in answer)
    return torch.stack(rows)
