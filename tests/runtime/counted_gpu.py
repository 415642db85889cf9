"""Random talks of a small model on a stand-in GPU that counts what torch makes, placed by the planner."""

from __future__ import annotations

import random
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit
from ernie_local.experts.build import GpuShare, PagingSetup
from ernie_local.loading.build import build_model
from ernie_local.media.image_size import ImageReport
from ernie_local.model import memory_use
from ernie_local.model.ernie import ErnieModel
from ernie_local.planner import gpu_need
from ernie_local.planner.fit import SLACK_BYTES, AvailableMemory
from ernie_local.planner.gpu_fit import GpuPlacement, least_gpu_total, place_on_gpu
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan
from ernie_local.sizes import GIB, MIB
from tests.runtime import caching_allocator, paged_models
from tests.runtime.caching_allocator import CachingAllocator
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import ids, image_ids

CONTEXT, CHUNK = 896, 96
ROWS, COLUMNS = 18, 16  # tokens of the largest image
SCALE = 64  # of the full model's sizes to this one's
SLACK = SLACK_BYTES // SCALE


class Counted(TorchDispatchMode):
    """Allocates each tensor that calls make, as long as somebody holds it: held bytes now, at most `most`."""

    def __init__(self, allocator: CachingAllocator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._allocator = allocator
        self._known: set[int] = set()
        self.held = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if _is_tensor(one)}
        output = func(*args, **(kwargs or {}))
        for one in filter(_is_tensor, tree_leaves(output)):
            storage = one.untyped_storage()
            start = storage.data_ptr()
            if id(storage) not in given and start not in self._known and storage.nbytes():
                self._known.add(start)
                block = self._allocator.allocate(storage.nbytes())
                self.held += block.num_bytes
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self._free, start, block)
        return output

    def _free(self, start: int, block: caching_allocator.Block) -> None:
        self._known.discard(start)
        self.held -= block.num_bytes
        self._allocator.free(block)


def _is_tensor(one: object) -> bool:
    return isinstance(one, torch.Tensor)


def use_small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that suit a model of some MiB, as torch's suit one of some GiB."""
    monkeypatch.setattr(memory_use, "CACHE_STEP_TOKENS", 64)
    for name, num_bytes in caching_allocator.SIZES.items():
        monkeypatch.setitem(caching_allocator.SIZES, name, num_bytes // SCALE)
    patches = ROWS * COLUMNS * 4
    monkeypatch.setattr(gpu_need, "_PATCHES", patches)


def planned(directory: Path, above_least: int, kv_dtype: str = "float32") -> tuple[GpuNeed, GpuPlacement]:
    """For chats with the largest image, on a GPU with this much more than the least."""
    model = read_model(directory)
    patches = ROWS * COLUMNS * 4
    image = ImageReport("image", (1, 1), (1, 1), patches=patches, tokens=patches // 4)
    chat = ChatPlan(CONTEXT, "float32", kv_dtype, (image,))
    weights = model.weights(4, in_slots=True)
    way = memory_use.cpu_attention_way(model.config, "float32")  # as the stand-in computes
    need = GpuNeed(
        config=model.config,
        chat=chat,
        weights=weights,
        plan=model.paging_plan,
        chunk_tokens=CHUNK,
        attention=way,
    )
    gpu = AvailableMemory(least_gpu_total(need) + above_least)
    return need, place_on_gpu(need, AvailableMemory(GIB), gpu)


def loaded(directory: Path, placement: GpuPlacement, gpu: FakeGpu) -> ErnieModel:
    share = GpuShare(
        gpu,
        placement.shared_bytes,
        placement.least_bytes,
        placement.cache_bytes,
        placement.room_bytes,
        placement.host_cache_bytes,
    )
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        setup = PagingSetup(64 * MIB, gpu=share, swaps_image_weights=placement.swapped_bytes > 0)
        device, host = torch.device("cpu"), placement.layout.host
        return build_model(checkpoint, config, torch.float32, device, setup, host=host)


def converse(model: ErnieModel, others: list[ErnieModel], seed: int, kv_dtype: torch.dtype) -> int:
    """A random conversation: text, images early and late, steps back, answers; all models answer alike.

    Gives back how many images were refused for lack of memory.
    """
    draw, refused = random.Random(seed), 0
    engines = [Engine(one, CONTEXT, kv_dtype, CHUNK) for one in (model, *others)]
    marks = [[engine.mark() for engine in engines]]
    for turn in range(draw.randint(3, 7)):
        number = 100 * seed + turn
        tokens, images = ids(draw.choice((1, 5, 40, 150)), number), []
        if draw.random() < 0.4:
            rows, columns = draw.randint(1, ROWS), draw.randint(1, COLUMNS)
            images = [paged_models.image(model, rows, columns, number)]
            tokens = [*image_ids(model, images[0]), *tokens]
        if draw.random() < 0.25:
            marks = marks[: draw.randint(1, len(marks))]  # later ones are gone with it
            for engine, mark in zip(engines, marks[-1], strict=True):
                engine.rewind(mark)
        if engines[0].length + len(tokens) + 8 > CONTEXT:
            break
        try:
            logits = engines[0].prefill(tokens, images)
        except DoesNotFit:
            assert images, "text always finds room"
            assert engines[0].length, "a first image too"
            refused += 1
            continue
        for engine in engines[1:]:
            torch.testing.assert_close(logits, engine.prefill(tokens, images), rtol=1e-3, atol=1e-3)
        for token in ids(draw.randint(1, 6), number):
            logits, *rest = (engine.decode(token) for engine in engines)
            for one in rest:
                torch.testing.assert_close(logits, one, rtol=1e-3, atol=1e-3)
        marks.append([engine.mark() for engine in engines])
    return refused


def count_computing(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, model: ErnieModel | None = None
) -> Counted:
    """Have the GPU allocate what torch makes while engines compute, of this model or any."""
    counted = Counted(gpu.allocator)
    for name in ("_append", "decode"):
        method = getattr(Engine, name)

        def run(engine: Engine, *arguments: Any, method: Any = method, **keywords: Any) -> Any:
            with counted if model is None or engine.model is model else nullcontext():
                return method(engine, *arguments, **keywords)

        monkeypatch.setattr(Engine, name, run)
    return counted
