"""Another program takes memory of a GPU while a model runs there: experts give way, answers stay the same."""

from __future__ import annotations

import gc
import random
import warnings
from pathlib import Path

import pytest
import torch

from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit, OutOfMemory
from ernie_local.experts.gpu_memory import GpuMemory, GpuMemoryWarning
from ernie_local.model import memory_use
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.kv_cache import RowMove
from ernie_local.planner.gpu_fit import GpuPlacement
from ernie_local.sizes import MIB
from tests.runtime import paged_models
from tests.runtime.caching_allocator import Block, CachingAllocator
from tests.runtime.counted_gpu import (
    CHUNK,
    CONTEXT,
    SLACK,
    converse,
    count_computing,
    loaded,
    planned,
    use_small_units,
)
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import ids, image_prompt, paged_experts


class Contended(CachingAllocator):
    """Of a GPU on which another program takes memory and gives it back, before any allocation of ours.

    taken: bytes that it has now. most_taken: that it may have.
    """

    def __init__(self, num_bytes: int, seed: int) -> None:
        super().__init__(num_bytes)
        self.taken = self.most_taken = 0
        self.share = 0.02  # of our allocations before which it does something
        self.wanted: tuple[float, ...] = (0, 0.3, 0.7, 1, 1, 1)  # shares of `most_taken` that it has then
        self._all = num_bytes
        self._draw = random.Random(seed)

    def take(self, num_bytes: int) -> None:
        """Have this much, or what is free."""
        self.taken = min(num_bytes, self.most_taken, self._all - self.reserved)
        self.num_bytes = self._all - self.taken

    def allocate(self, num_bytes: int) -> Block:
        if self.most_taken and self._draw.random() < self.share:
            self.take(int(self.most_taken * self._draw.choice(self.wanted)))
        block = super().allocate(num_bytes)
        assert self.reserved + self.taken <= self._all
        return block


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_units(monkeypatch)


def contended(directory: Path, above: int, seed: int) -> tuple[ErnieModel, Contended, GpuPlacement, FakeGpu]:
    """A model on a GPU with this much `above` the least, of which the other program may take as much."""
    _, placement = planned(directory, above)
    gpu = FakeGpu(leaves_gaps=False)
    gpu.allocator = allocator = Contended(placement.shared_bytes + SLACK, seed)
    return loaded(directory, placement, gpu), allocator, placement, gpu


def memory_of(model: ErnieModel) -> GpuMemory:
    memory = paged_experts(model).top.memory
    assert isinstance(memory, GpuMemory)
    return memory


def talk_for_long(directory: Path, monkeypatch: pytest.MonkeyPatch, seeds: range, kv_dtype: str) -> int:
    """Conversations beside the other program, a few with each model. Bytes that were given up."""
    resident, given_up = paged_models.build(directory, None), 0
    for first in range(seeds.start, seeds.stop, 10):
        with monkeypatch.context() as patched, warnings.catch_warnings():
            warnings.simplefilter("ignore", GpuMemoryWarning)
            model, allocator, _, gpu = contended(directory, 8 * MIB, first)
            count_computing(gpu, patched, model)
            allocator.most_taken = 5 * MIB
            for seed in range(first, min(first + 10, seeds.stop)):
                converse(model, [resident], seed, getattr(torch, kv_dtype))
                gc.collect()
            stats = paged_experts(model).stats.gpu
            assert stats is not None
            assert stats.given_up_bytes == memory_of(model).planned_bytes - memory_of(model).num_bytes
            given_up += stats.given_up_bytes
            del model
    return given_up


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_answers_are_the_same_beside_another_program(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch, kv_dtype: str
) -> None:
    assert talk_for_long(packed_nano, monkeypatch, range(1), kv_dtype) > 0


@pytest.mark.slow
def test_more_conversations_beside_another_program(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert talk_for_long(packed_nano, monkeypatch, range(100, 120), "float32") > 0


def rows_of(engine: Engine) -> list[torch.Tensor]:
    return list(engine.read_rows(0, engine.length))


def refuse_all(allocator: Contended) -> None:
    """The other program has every byte that we give back."""
    allocator.most_taken, allocator.share, allocator.wanted = 1 << 40, 1.0, (1,)


def leave(allocator: Contended) -> None:
    """The other program ends."""
    allocator.most_taken, allocator.share = 0, 0.0
    allocator.take(0)


def begun(directory: Path, above: int) -> tuple[Engine, Engine, Contended]:
    """A conversation that has begun, the same one of a model in memory, and the GPU's allocator."""
    model, allocator, _, _ = contended(directory, above, 0)
    engines = [
        Engine(one, CONTEXT, chunk_tokens=CHUNK) for one in (model, paged_models.build(directory, None))
    ]
    for engine in engines:
        engine.prefill(ids(150, 1))
        engine.decode(50)
    return engines[0], engines[1], allocator


def fail_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU refuses memory to the next forward of this engine, once."""
    forward, left = engine.model.experts.begin, [1]

    def begin(*arguments: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("Tried to allocate 7 bytes. None are free.")
        forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.model.experts, "begin", begin)


def test_experts_give_a_sixteenth_up_and_say_it(packed_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, other, _ = begun(packed_nano, 8 * MIB)
    memory, before = memory_of(engine.model), memory_of(engine.model).num_bytes
    fail_once(engine, monkeypatch)
    with pytest.warns(
        GpuMemoryWarning, match=r"given up, .* \(Tried to allocate 7 bytes\. None are free\.\)"
    ):
        logits = engine.decode(60)
    torch.testing.assert_close(logits, other.decode(60), rtol=1e-3, atol=1e-3)
    assert memory.num_bytes == pytest.approx(before * 15 / 16, rel=0.01)
    assert memory.lent_bytes == 0  # and the answer has the workspace again


def test_memory_that_cannot_be_had_again_costs_no_conversation(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, other, allocator = begun(packed_nano, 8 * MIB)
    mark, rows = engine.mark(), rows_of(engine)
    fail_once(engine, monkeypatch)
    refuse_all(allocator)
    for _ in range(2):
        with pytest.raises(DoesNotFit, match="could not allocate"):
            engine.decode(60)
        assert engine.mark() == mark
        assert all(map(torch.equal, rows_of(engine), rows))
    with pytest.raises(DoesNotFit):
        Engine(engine.model, CONTEXT, chunk_tokens=CHUNK).prefill(ids(3, 1))
    leave(allocator)
    with pytest.warns(GpuMemoryWarning):
        logits = engine.decode(60)
    torch.testing.assert_close(logits, other.decode(60), rtol=1e-3, atol=1e-3)
    prompt, images = image_prompt(engine.model, 3)
    again = [one.prefill(prompt, images) for one in (engine, other)]
    torch.testing.assert_close(*again, rtol=1e-3, atol=1e-3)


def test_a_conversation_that_ends_meanwhile_leaves_nothing(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, other, allocator = begun(packed_nano, 8 * MIB)
    model, frames = engine.model, paged_experts(engine.model).ram.cache.slots.num_frames
    fail_once(engine, monkeypatch)
    refuse_all(allocator)
    with pytest.raises(DoesNotFit):
        engine.decode(60)
    assert paged_experts(model).ram.cache.slots.num_frames < frames
    del engine
    gc.collect()
    leave(allocator)
    with pytest.warns(GpuMemoryWarning):
        logits = Engine(model, CONTEXT, chunk_tokens=CHUNK).prefill(ids(40, 5))
    expected = Engine(other.model, CONTEXT, chunk_tokens=CHUNK).prefill(ids(40, 5))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert paged_experts(model).ram.cache.slots.num_frames == frames


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.int8])
def test_a_fall_before_rows_of_a_second_conversation_have_moved_loses_none(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch, kv_dtype: torch.dtype
) -> None:
    """The first has ended, so that the second has its place when it grows; the GPU refuses a buffer."""
    model, _, _, _ = contended(packed_nano, 8 * MIB, 0)
    first = Engine(model, CONTEXT, chunk_tokens=CHUNK)
    first.prefill(ids(30, 1))
    pair = [
        Engine(one, CONTEXT, kv_dtype, chunk_tokens=CHUNK)
        for one in (model, paged_models.build(packed_nano, None))
    ]
    for engine in pair:
        engine.prefill(ids(memory_use.CACHE_STEP_TOKENS, 2))
    second, other = pair
    rows = rows_of(second)
    del first
    gc.collect()
    begin, left = RowMove.__init__, [1]

    def refuse_once(*arguments: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("Tried to allocate 7 bytes. None are free.")
        begin(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RowMove, "__init__", refuse_once)
    with pytest.warns(GpuMemoryWarning):
        logits = second.decode(60)
    assert left[0] < 0
    moved = second.read_rows(0, second.length - 1)
    assert all(map(torch.equal, moved, rows))
    torch.testing.assert_close(logits, other.decode(60), rtol=1e-3, atol=1e-3)


def test_rows_that_move_while_they_are_read_are_read_where_they_are(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _, _ = contended(packed_nano, 8 * MIB, 0)
    stored = Engine(model, CONTEXT, torch.int8, chunk_tokens=CHUNK)
    stored.prefill(ids(100, 1))
    pieces = stored._cache._pieces(0, stored.length)
    next(pieces)
    other = Engine(model, 32, torch.int8, chunk_tokens=CHUNK)
    fail_once(other, monkeypatch)
    with pytest.warns(GpuMemoryWarning):
        other.prefill(ids(3, 2))
    scales = stored._cache._rows_of(0)[1]
    assert scales is not None
    assert next(pieces).data_ptr() == scales.data_ptr()


def test_experts_at_their_floor_refuse_with_both_numbers(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, other, _ = begun(packed_nano, 0)
    begin, mark = engine.model.experts.begin, engine.mark()

    def refused(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 7 bytes. None are free.")

    monkeypatch.setattr(engine.model.experts, "begin", refused)
    with (
        pytest.warns(GpuMemoryWarning),
        pytest.raises(DoesNotFit, match=r"None are free.*hold .*MiB, of which they need .*MiB"),
    ):
        engine.decode(60)
    assert engine.mark() == mark
    monkeypatch.setattr(engine.model.experts, "begin", begin)
    torch.testing.assert_close(engine.decode(60), other.decode(60), rtol=1e-3, atol=1e-3)


class _Stop(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


@pytest.mark.parametrize("method", ["allocate", "_allocate"])
@pytest.mark.parametrize("is_before", [True, False])
def test_an_interruption_while_memory_is_given_up_costs_nothing(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch, method: str, *, is_before: bool
) -> None:
    engine, other, _ = begun(packed_nano, 8 * MIB)
    rows, given = rows_of(engine), getattr(GpuMemory, method)

    def stop(*arguments: object) -> None:
        if not is_before:
            given(*arguments)
        raise _Stop

    fail_once(engine, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(GpuMemory, method, stop)
        with pytest.raises(_Stop):
            engine.decode(60)
    assert all(map(torch.equal, rows_of(engine), rows))
    with pytest.warns(GpuMemoryWarning):
        logits = engine.decode(60)
    torch.testing.assert_close(logits, other.decode(60), rtol=1e-3, atol=1e-3)


def test_a_model_without_paging_says_what_was_refused(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(paged_models.build(packed_nano, None), 32)
    fail_once(engine, monkeypatch)
    with pytest.raises(OutOfMemory, match="None are free"):
        engine.prefill(ids(3, 1))
    engine.prefill(ids(3, 1))
