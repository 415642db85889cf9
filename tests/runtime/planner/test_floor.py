"""The smallest limit: `vram` names it, `load` takes that and not a byte less, and a chat works in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ernie_local import defaults, session
from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.errors import DoesNotFit
from ernie_local.loading import LoadOptions, load_model, loader
from ernie_local.loading.loader import ComputeDemand, MemoryLimits, count_need
from ernie_local.media.image_size import measure_image
from ernie_local.model_files import ModelFiles, find_model_files
from ernie_local.planner.fit import AvailableMemory, headroom_bytes
from ernie_local.planner.gpu import plan_gpu
from ernie_local.planner.gpu_fit import place_on_gpu
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget, plan_cpu
from ernie_local.sizes import GIB, MIB
from tests.conftest import PackNano

MODELS = ("nano", "w4", "w2", "tiny")
# Contexts with images that come first: none, a small one, a page that is made smaller, several, a long one.
CHATS: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = (
    (64, ()),
    (4096, ()),
    (512, ((300, 200),)),
    (1024, ((1240, 1754),)),
    (4096, ((1240, 1754), (300, 200), (2480, 3508))),
)


class PlacedError(Exception):
    """Raised where weights would be read."""


@pytest.fixture
def files(request: pytest.FixtureRequest, pack_nano: PackNano) -> ModelFiles:
    directories: dict[str, Callable[[], Path]] = {
        "nano": lambda: NANO_DIRECTORY,
        "w4": lambda: pack_nano(FormatChoice()),
        "w2": lambda: pack_nano(FormatChoice("w2", "w4")),
        "tiny": lambda: request.getfixturevalue("tiny_checkpoint"),
    }
    return find_model_files(directories[request.param]())


def planned_chat(files: ModelFiles, context: int, sizes: tuple[tuple[int, int], ...], dtype: str) -> ChatPlan:
    images = tuple(measure_image("image", size, files.image_processor) for size in sizes)
    kv_dtype = defaults.kv_dtype(dtype, is_packed=files.config.quantization is not None)
    return ChatPlan(context, dtype, kv_dtype, images)


@pytest.mark.parametrize(("context", "sizes"), CHATS)
@pytest.mark.parametrize("files", MODELS, indirect=True)
def test_the_smallest_ram_is_that_of_load(
    files: ModelFiles, context: int, sizes: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise PlacedError

    monkeypatch.setattr(loader, "build_model", stop)
    # As in a process that does nothing else; that of the tests is larger.
    monkeypatch.setattr(loader, "process_memory", lambda: 0)
    model, chat = read_model(files.directory), planned_chat(files, context, sizes, "float32")

    def loads(limit: int) -> bool:
        options = LoadOptions(ram=limit, context_size=context)
        with pytest.raises((PlacedError, DoesNotFit)) as raised:
            load_model(files, options, images=chat.images)
        return raised.type is PlacedError

    least = plan_cpu(model, chat, Budget(MIB)).least_bytes
    for limit, is_enough in ((least - 1, False), (least, True)):
        assert plan_cpu(model, chat, Budget(limit)).fits == loads(limit) == is_enough


@pytest.mark.parametrize(("context", "sizes"), CHATS)
@pytest.mark.parametrize("files", MODELS, indirect=True)
def test_the_smallest_gpu_is_that_of_load(
    files: ModelFiles, context: int, sizes: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "unpacking_room", lambda *_: 0)  # as with Triton
    monkeypatch.setattr(loader, "find_triton", lambda *_: object())
    model, chat = read_model(files.directory), planned_chat(files, context, sizes, "bfloat16")
    demand, limits = ComputeDemand(torch.device("cuda:0"), chat, None), MemoryLimits(None, None, None)
    with open_checkpoint(files.directory, files.config) as checkpoint:
        need = count_need(checkpoint, files.image_processor, files.config, demand, limits, None)
    assert isinstance(need, GpuNeed)

    def loads(limit: int) -> bool:
        try:
            place_on_gpu(need, AvailableMemory(1 << 60), AvailableMemory.of_gpu(4 * GIB, limit))
        except DoesNotFit:
            return False
        return True

    least = plan_gpu(model, chat, MIB, Budget(64 * GIB)).least_bytes
    for num_bytes, is_enough in ((least - 1, False), (least, True)):
        assert plan_gpu(model, chat, num_bytes, Budget(64 * GIB)).fits == is_enough
        # What CUDA has of the GPU, and the headroom, are left by a limit.
        assert loads(num_bytes - 450 * MIB - headroom_bytes()) == is_enough


def test_a_chat_with_an_image_works_at_the_floor(packed_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is refused below it, before weights are read."""
    from PIL import Image

    monkeypatch.setattr(loader, "process_memory", lambda: 0)
    files = find_model_files(packed_nano)
    (image,) = session.open_chat_images([Image.effect_noise((700, 500), 60)], files.image_processor)
    chat = planned_chat(files, 512, ((700, 500),), "float32")
    least = plan_cpu(read_model(packed_nano), chat, Budget(MIB)).least_bytes
    options = LoadOptions(ram=least, context_size=512)
    model = session.open_model(files, options, images=[image])
    assert model.paging is not None
    pieces = list(session.Chat(model).ask("What is it?", images=[image], max_tokens=3))
    assert pieces
    short = LoadOptions(ram=least - 1, context_size=512)
    with pytest.raises(DoesNotFit, match=r"the model needs at least .*\n.*\n.*fewer or smaller images"):
        session.open_model(files, short, images=[image])


@pytest.mark.parametrize("files", ["w4", "tiny"], indirect=True)
def test_ram_beside_a_gpu_holds_what_load_puts_there(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the rest is read from disk; the floor is named to the byte."""
    monkeypatch.setattr(loader, "unpacking_room", lambda *_: 0)  # as with Triton
    monkeypatch.setattr(loader, "find_triton", lambda *_: object())
    monkeypatch.setattr(loader, "process_memory", lambda: 0)
    monkeypatch.setattr(loader, "free_memory", lambda: 64 * GIB)
    model, chat = read_model(files.directory), planned_chat(files, 512, ((300, 200),), "bfloat16")
    demand = ComputeDemand(torch.device("cuda:0"), chat, None)
    with open_checkpoint(files.directory, files.config) as checkpoint:
        need = count_need(
            checkpoint, files.image_processor, files.config, demand, MemoryLimits(None, None, None), None
        )
    assert isinstance(need, GpuNeed)
    vram = plan_gpu(model, chat, MIB, Budget(64 * GIB)).least_bytes
    roomy, paging = plan_gpu(model, chat, vram, Budget(64 * GIB)), model.paging_plan
    assert paging is not None
    assert roomy.tier == "paged"
    gpu = AvailableMemory.of_gpu(4 * GIB, vram - 450 * MIB - headroom_bytes())
    seen = set()
    middle = (roomy.host_least_bytes + roomy.host_bytes) // 2
    for limit in (
        roomy.host_least_bytes - 1,
        roomy.host_least_bytes,
        middle,
        roomy.host_bytes - 1,
        roomy.host_bytes,
    ):
        plan = plan_gpu(model, chat, vram, Budget(limit))
        seen.add(plan.tier)
        try:
            ram = MemoryLimits(limit, None, None).find_ram(demand.process_bytes)
            placed = place_on_gpu(need, ram, gpu)
        except DoesNotFit:
            assert plan.tier == "needs ram"
            continue
        assert placed.paged_bytes is not None
        frames = paging.build_cache(placed.paged_bytes).slots.num_frames
        assert plan.ram_slots_bytes == frames * paging.frame_bytes
        assert (plan.tier == "paged") == (placed.paged_bytes >= paging.most_bytes)
    assert seen == {"needs ram", "paged from disk", "paged"}


def test_a_gpu_that_is_too_small_holds_no_experts() -> None:
    """Whatever share of them the smallest way to run it would have there."""
    chat, model = ChatPlan(1024, "bfloat16", "bfloat16"), read_model(NANO_DIRECTORY)
    too_small = plan_gpu(model, chat, MIB, Budget(64 * GIB))
    assert not too_small.fits
    assert not too_small.holds_text_experts
    assert plan_gpu(model, chat, 4 * GIB, Budget(64 * GIB)).holds_text_experts
