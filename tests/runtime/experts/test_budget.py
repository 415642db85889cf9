"""A KV cache that grows at the end of the memory that pages lie in, on a GPU which a fake one stands for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit
from ernie_local.experts.level import PageLevel
from ernie_local.experts.options import MISS_RULES, PagingOptions
from ernie_local.experts.traffic import PageTraffic
from ernie_local.experts.two_levels import TwoLevels
from ernie_local.model import memory_use
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.kv_cache import CacheLayout, KVCache, RowMove
from ernie_local.model.memory_use import KVSize, chunk_bytes_on_gpu
from tests.draws import rest_slow
from tests.runtime import paged_models
from tests.runtime.fake_gpu import FakeGpu, RaceError, watch
from tests.runtime.paged_models import (
    build,
    gpu_cache_bytes,
    gpu_share,
    ids,
    image_ids,
    paged_experts,
    plan_of,
    share,
)

CONTEXT = paged_models.CONTEXT_SIZE
TALK_CONTEXT = CONTEXT // 2
CONFIG = read_config(NANO_DIRECTORY)
KV_DTYPES = [torch.float32, torch.bfloat16, torch.int8]


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_use, "CACHE_STEP_TOKENS", 64)


@pytest.fixture(scope="module")
def directory(packed_nano: Path) -> Path:
    return packed_nano


@pytest.fixture(scope="module")
def resident(directory: Path) -> ErnieModel:
    return build(directory, None)


def on_gpu(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: str = "fetch",
    upper: float = 0.0,
    lower: float = 0.5,
    context_size: int = CONTEXT,
) -> ErnieModel:
    """Beside the cache of a full context the GPU has this share of what is above the floor."""
    gpu = FakeGpu()
    watch(gpu, monkeypatch)
    above = gpu_share(directory, gpu, share(directory, upper), context_size)
    return build(directory, share(directory, lower), PagingOptions(MISS_RULES[rule]), above)


def num_frames(model: ErnieModel) -> int:
    return paged_experts(model).top.cache.slots.num_frames


def talk(model: ErnieModel, dtype: torch.dtype) -> torch.Tensor:
    """Turns with an image, an answer over a step, a rewind, a full context and a new beginning."""
    engine = Engine(model, TALK_CONTEXT, dtype, chunk_tokens=100)
    image = paged_models.image(model, 5, 4)
    begin = engine.mark()
    rows = [engine.prefill(ids(60, 1))]
    rows += [engine.decode(token) for token in ids(6, 2)]
    middle = engine.mark()
    rows.append(engine.prefill([*ids(4, 3), *image_ids(model, image), *ids(60, 4)], [image]))
    engine.rewind(middle)
    rows.append(engine.decode(77))  # in fewer tokens than the cache has room for
    engine.rewind(middle)
    rows.append(engine.prefill([*image_ids(model, image), *ids(164, 5)], [image]))
    rows += [engine.decode(token) for token in ids(4, 6)]
    assert engine.length == TALK_CONTEXT
    engine.rewind(begin)
    rows.append(engine.prefill(ids(20, 7)))
    rows += [engine.decode(token) for token in ids(3, 8)]
    return torch.stack(rows)


@pytest.fixture(scope="module")
def expected(resident: ErnieModel) -> dict[torch.dtype, torch.Tensor]:
    """What the resident model gives, by the dtype of its cache."""
    return {dtype: talk(resident, dtype) for dtype in KV_DTYPES}


# One conversation after the other, each with a cache of another dtype; all pairs in the slow run.
GROWING = [
    ("fetch", 0.0, 0.0, KV_DTYPES),
    ("fetch", 0.2, 0.5, [torch.int8]),
    ("compute", 0.1, 0.5, [torch.bfloat16]),
    ("split", 0.0, 1.0, [torch.float32]),
    ("fetch", 0.2, 0.5, [torch.float32, torch.bfloat16]),
    ("compute", 0.1, 0.5, [torch.float32, torch.int8]),
    ("split", 0.0, 1.0, [torch.bfloat16, torch.int8]),
]


@pytest.mark.parametrize(("rule", "upper", "lower", "dtypes"), rest_slow(GROWING, 4))
def test_a_growing_conversation_is_that_of_the_resident_model(
    directory: Path,
    expected: dict[torch.dtype, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    upper: float,
    lower: float,
    dtypes: list[torch.dtype],
) -> None:
    model = on_gpu(directory, monkeypatch, rule, upper, lower, TALK_CONTEXT)
    for dtype in dtypes:
        torch.testing.assert_close(talk(model, dtype), expected[dtype], rtol=1e-4, atol=1e-4)
        gc.collect()  # the next cache lies where this one did


def test_experts_give_frames_as_the_cache_grows_and_have_them_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_gpu(directory, monkeypatch, upper=0.3)
    top, frame = paged_experts(model).top, plan_of(directory).frame_bytes
    everything = num_frames(model)
    engine = Engine(model, CONTEXT)
    assert (num_frames(model), engine.kv_cache_bytes) == (everything, 0)  # before the first token
    begin, seen = engine.mark(), []
    for _ in range(8):
        engine.prefill(ids(63, 1))
        assert engine.kv_cache_bytes == gpu_cache_bytes(CONFIG, engine.length)
        assert num_frames(model) == (top.memory.num_bytes - engine.kv_cache_bytes) // frame
        seen.append(num_frames(model))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] < everything
    engine.rewind(begin)
    engine.decode(50)
    assert num_frames(model) == seen[0]
    engine.prefill(ids(300, 2))
    del engine
    gc.collect()
    Engine(model, CONTEXT).prefill(ids(5, 3))
    assert num_frames(model) == seen[0]


def test_a_second_conversation_lies_in_the_fixed_room_until_the_first_is_gone(
    directory: Path, resident: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_gpu(directory, monkeypatch, upper=0.3)
    first, second, expected = Engine(model, CONTEXT), Engine(model, CONTEXT), Engine(resident, CONTEXT)
    first.prefill(ids(70, 1))
    frames = num_frames(model)
    for turn in range(3):
        torch.testing.assert_close(
            second.prefill(ids(60, turn)), expected.prefill(ids(60, turn)), rtol=1e-4, atol=1e-4
        )
    assert num_frames(model) == frames
    budget = paged_experts(model).budget
    at_work = chunk_bytes_on_gpu(CONFIG.text, 60, 180, model.attention_way)
    budget.make_room(first, paged_models.GPU_ROOM - gpu_cache_bytes(CONFIG, 360) - at_work)
    with pytest.raises(DoesNotFit, match=r"64\.0 MiB was kept"):
        second.prefill(ids(100, 5))
    budget.make_room(first, 0)
    del first
    gc.collect()
    torch.testing.assert_close(
        second.prefill(ids(300, 6)), expected.prefill(ids(300, 6)), rtol=1e-4, atol=1e-4
    )
    assert num_frames(model) < frames
    # What it had in the fixed room is free.
    budget.make_room(
        second, paged_models.GPU_ROOM - chunk_bytes_on_gpu(CONFIG.text, 300, 480, model.attention_way)
    )


def test_a_context_that_experts_cannot_give_is_refused_and_nothing_is_lost(
    directory: Path, resident: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_gpu(directory, monkeypatch)
    engine, other = Engine(model, 4096), Engine(resident, 4096)
    engine.prefill(ids(60, 1))
    other.prefill(ids(60, 1))
    frames, held = num_frames(model), engine.kv_cache_bytes
    with pytest.raises(DoesNotFit, match=r"conversation needs .* of the GPU and experts"):
        engine.prefill(ids(3000, 2))
    assert (num_frames(model), engine.kv_cache_bytes) == (frames, held)
    torch.testing.assert_close(engine.decode(50), other.decode(50), rtol=1e-4, atol=1e-4)


def fill_from_below(model: ErnieModel) -> None:
    """Pages on their way to every slot of the GPU, though nobody waits for them."""
    traffic = paged_experts(model).traffic
    assert isinstance(traffic, TwoLevels)
    keys = [key for keys in traffic.upper.keys.values() for key in keys]
    traffic.upper.promote(keys, len(keys))
    slots = traffic.upper.cache.slots
    assert slots.num_free_frames == 0
    assert traffic.upper.cache.in_flight


def test_pages_that_come_back_wait_for_the_cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_gpu(directory, monkeypatch, upper=0.3, lower=1.0)
    uses, keep = paged_experts(model).top.last_uses, PageLevel.use_only_frames
    engine = Engine(model, CONTEXT)
    begin = engine.mark()

    def begin_again() -> None:
        engine.prefill(ids(400, 1))
        # Whatever was copied for the last layers came before the last look at the whole cache.
        for layer_id in range(CONFIG.text.num_hidden_layers):
            engine._cache.storage(layer_id)
        engine.rewind(begin)
        engine._cache.reserve(20)
        fill_from_below(model)

    def forgetful(self: PageLevel, wanted: Collection[int]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(uses, "note", lambda ranges, event: None)
            keep(self, wanted)

    begin_again()
    monkeypatch.setattr(PageLevel, "use_only_frames", forgetful)
    with pytest.raises(RaceError, match="overwritten while it is computed with"):
        begin_again()


def test_a_cache_waits_for_pages_on_their_way(
    directory: Path, resident: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = on_gpu(directory, monkeypatch, upper=0.3, lower=1.0), ids(100, 1)
    engine, expected = Engine(model, CONTEXT), Engine(resident, CONTEXT)
    engine.decode(50)
    expected.decode(50)
    fill_from_below(model)
    torch.testing.assert_close(engine.prefill(prompt), expected.prefill(prompt), rtol=1e-4, atol=1e-4)


def test_a_cache_that_waits_for_nothing_is_found(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_gpu(directory, monkeypatch, upper=0.3, lower=1.0)
    drain = PageTraffic.drain

    def impatient(self: PageTraffic) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(FakeGpu, "compute_after", lambda gpu, event: None)
            drain(self)

    engine = Engine(model, CONTEXT)
    engine.decode(50)
    fill_from_below(model)
    monkeypatch.setattr(PageTraffic, "drain", impatient)
    with pytest.raises(RaceError, match="written to while a page is copied there"):
        engine.prefill(ids(100, 1))


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize(("old", "new", "length"), [(64, 128, 64), (64, 4096, 50), (4096, 4160, 4096)])
def test_no_row_is_overwritten_before_it_is_copied(
    dtype: torch.dtype, old: int, new: int, length: int
) -> None:
    config = CONFIG.text
    smaller, larger = (KVSize.of(config, capacity, dtype.itemsize) for capacity in (old, new))
    memory = torch.randint(0, 100, (larger.num_bytes,), dtype=torch.uint8)
    before = CacheLayout.inside(memory[larger.num_bytes - smaller.num_bytes :], smaller, config, dtype)
    expected = [row.clone() for row in before.rows(length)]
    after = CacheLayout.inside(memory, larger, config, dtype)
    assert after.num_bytes == larger.num_bytes
    RowMove(before, after, length).finish()
    for row, wanted in zip(after.rows(length), expected, strict=True):
        assert torch.equal(row.view(torch.uint8), wanted.view(torch.uint8))


class OneMemory:
    """A CacheMemory that ends where it always ended."""

    def __init__(self) -> None:
        self.memory = torch.zeros(32 << 20, dtype=torch.uint8)

    def resize(self, num_bytes: int) -> torch.Tensor:
        return self.memory[self.memory.nbytes - num_bytes :]

    def use_resized(self, memory: torch.Tensor) -> None:
        """Nothing: nobody else has any."""

    def on_move(self, follow: Callable[[torch.Tensor], None]) -> None:
        """Nothing: it stays."""

    def keep_in_ram(self, num_bytes: int) -> None:
        assert num_bytes == 0


@pytest.mark.parametrize("when", [0, 1, 2, 3, 40, 41])
def test_ctrl_c_while_rows_move_waits_until_all_have(monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    config, dtype = CONFIG.text, torch.float32
    cache = KVCache(config, 256, dtype, torch.device("cpu"), OneMemory())
    cache.reserve(60)
    shape = (60, config.num_key_value_heads, config.head_dim)
    states = [torch.randn(2, *shape) for _ in range(config.num_hidden_layers)]
    for layer_id, (keys, values) in enumerate(states):
        cache.append(layer_id, keys, values)
    cache.advance(60)
    copy_, calls = torch.Tensor.copy_, [0]

    def interrupted(self: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        result = copy_(self, source)
        if calls[0] == when + 1:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.reserve(65)
    for layer_id, (keys, values) in enumerate(states):
        stored = cache.storage(layer_id)
        assert torch.equal(stored.keys[:, :60], keys.transpose(0, 1))
        assert torch.equal(stored.values[:, :60], values.transpose(0, 1))
