"""Experts paged to a GPU, which a fake one stands for: right answers, in an order that would hold."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from ernie_local.checkpoint import uncached_file
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit, ModelUnusable
from ernie_local.experts.gpu_memory import GpuMemory
from ernie_local.experts.options import FETCH, MISS_RULES, MissRule, PagingOptions
from ernie_local.experts.paged import PagedExperts
from ernie_local.experts.readers import DiskReader, PageCopier
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.sizes import format_bytes
from tests.runtime import caching_allocator, paged_models
from tests.runtime.fake_gpu import FakeGpu, RaceError, watch
from tests.runtime.paged_models import (
    answer_logits,
    build,
    gpu_share,
    ids,
    image_ids,
    paged_experts,
    plan_of,
    share,
)

RULES = MISS_RULES
Turn = tuple[list[int], list[Patches], list[int]]


@pytest.fixture(scope="module")
def directory(packed_nano: Path) -> Path:
    return packed_nano


@pytest.fixture(scope="module")
def resident(directory: Path) -> ErnieModel:
    return build(directory, None)


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A test that hangs fails after two minutes."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def on_gpu(
    directory: Path,
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    rule: MissRule = FETCH,
    upper: float = 0.2,
    lower: float = 0.5,
) -> ErnieModel:
    """Each memory has this share of what is above the floor."""
    watch(gpu, monkeypatch)
    above = gpu_share(directory, gpu, share(directory, upper))
    return build(directory, share(directory, lower), PagingOptions(rule), above)


def talk(model: ErnieModel) -> torch.Tensor:
    """With chunks of 25 tokens, a border lies inside of the image."""
    image = paged_models.image(model, 9, 4)
    turns: list[Turn] = [
        (ids(23, 1), [], ids(4, 2)),
        ([*ids(4, 3), *image_ids(model, image), *ids(4, 4)], [image], ids(5, 5)),
    ]
    return answer_logits(model, turns, 25)


@pytest.fixture(scope="module")
def expected(resident: ErnieModel) -> torch.Tensor:
    return talk(resident)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("upper", "lower"), [(0.0, 0.0), (0.2, 0.5), (0.0, 1.0), (0.5, 0.0)])
def test_a_conversation_is_that_of_the_resident_model(
    directory: Path,
    expected: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    upper: float,
    lower: float,
) -> None:
    gpu = FakeGpu()
    model = on_gpu(directory, gpu, monkeypatch, RULES[rule], upper, lower)
    assert torch.equal(talk(model), expected)
    assert gpu.num_host_waits == 0
    experts = paged_experts(model)
    assert experts.stats.gpu is not None
    text, below = experts.stats.gpu.banks["text"], experts.stats.banks["text"]
    choices = model.config.text.experts_per_token * sum(model.config.text.moe_layers)
    assert text.decode_hits + text.decode_misses == experts.stats.decoded_tokens * choices
    if rule == "fetch":  # what the upper memory lacks, and nothing else, is asked of the lower one
        assert below.decode_hits + below.decode_misses == text.decode_misses
    if lower == 1.0:  # every page is read once
        assert below.bytes_read <= experts.num_bytes


def test_computed_below_pages_come_up_when_they_are_hot(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_gpu(directory, FakeGpu(), monkeypatch, RULES["compute"], 0.3, 1.0)
    experts, engine = paged_experts(model), Engine(model, 200)
    engine.prefill(ids(5, 1))
    for _ in range(3):
        before = experts.stats.copy()
        for token in [50] * 12:
            engine.decode(token)
        spent = experts.stats.since(before).gpu
    assert spent is not None
    assert spent.banks["text"].decode_hits > spent.banks["text"].decode_misses
    assert experts.stats.banks["text"].bytes_read > 0


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_reads_back_once_and_waits_for_nothing_else(
    directory: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    gpu = FakeGpu()
    model = on_gpu(directory, gpu, monkeypatch, RULES[rule])
    engine = Engine(model, 64)
    engine.prefill(ids(20, 1))
    num_layers = sum(model.config.text.moe_layers)
    assert gpu.num_read_backs == num_layers
    sent = gpu.num_sent
    for count, token in enumerate(range(60, 72)):
        engine.decode(token)
        assert gpu.num_read_backs == (count + 2) * num_layers
    assert gpu.num_host_waits == 0
    # A table for the pages that are there and one for each group that comes, or what was computed below.
    assert gpu.num_sent - sent <= 12 * num_layers * 4
    stats = paged_experts(model).stats.gpu
    assert stats is not None
    assert stats.banks["text"].decode_misses > 0


def test_places_are_sent_when_they_have_changed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    model = on_gpu(directory, gpu, monkeypatch, upper=1.0, lower=1.0)
    engine = Engine(model, 64)
    engine.prefill(ids(20, 1))
    for _ in range(4):
        before = gpu.num_sent
        mark = engine.mark()
        engine.decode(50)
        engine.rewind(mark)
    assert gpu.num_sent == before  # the same experts once more: nothing came, nothing is sent


def forget_uses_above(experts: PagedExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts.top.last_uses, "find", lambda first, num_bytes: None)


def forget_uses_below(experts: PagedExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts.ram.last_uses, "find", lambda first, num_bytes: None)


def compute_at_once(experts: PagedExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGpu, "compute_after", lambda self, event: None)


def copy_at_once(experts: PagedExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskReader, "reading", lambda self, key: None)


@pytest.mark.parametrize(
    ("broken", "race"),
    [
        (forget_uses_above, "overwritten while it is computed with"),
        (forget_uses_below, "read from disk over what is being copied"),
        (compute_at_once, "computed with before it was copied"),
        (copy_at_once, "copied before it was read from disk"),
    ],
)
def test_what_is_in_no_order_is_found(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[PagedExperts, pytest.MonkeyPatch], None],
    race: str,
) -> None:
    gpu = FakeGpu()
    model = on_gpu(directory, gpu, monkeypatch, upper=0.0, lower=0.0)
    broken(paged_experts(model), monkeypatch)
    with pytest.raises(RaceError, match=race):
        talk(model)


@pytest.mark.parametrize("rule", RULES)
def test_a_disk_that_fails_at_one_page_loses_nothing(
    directory: Path, resident: ErnieModel, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    model = on_gpu(directory, FakeGpu(), monkeypatch, RULES[rule], upper=0.0, lower=0.0)
    engine, other = Engine(model, 64), Engine(resident, 64)
    assert torch.equal(engine.prefill(ids(20, 1)), other.prefill(ids(20, 1)))
    with monkeypatch.context() as patch:

        def broken(self: uncached_file.UncachedFile, offset: int, into: memoryview) -> None:
            raise ModelUnusable("a", "b", "c")

        patch.setattr(uncached_file.UncachedFile, "read", broken)
        with pytest.raises(ModelUnusable):
            decode_all(engine, range(60, 80))
    decode_all(other, range(60, 60 + engine.length - other.length))
    assert torch.equal(engine.decode(90), other.decode(90))


def decode_all(engine: Engine, tokens: range) -> None:
    for token in tokens:
        engine.decode(token)


@pytest.mark.parametrize("when", [0, 3, 11])
@pytest.mark.parametrize("rule", RULES)
def test_ctrl_c_while_pages_are_copied(
    directory: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch, rule: str, when: int
) -> None:
    model = on_gpu(directory, FakeGpu(), monkeypatch, RULES[rule], upper=0.0, lower=0.2)
    wait, calls = PageCopier.wait, [0]

    def interrupted(self: PageCopier, keys: object) -> None:
        calls[0] += 1
        if calls[0] == when + 1:
            raise KeyboardInterrupt
        wait(self, keys)  # type: ignore[arg-type]

    monkeypatch.setattr(PageCopier, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk(model)
    assert torch.equal(talk(model), expected)


def test_a_gpu_that_has_less_than_it_said_holds_fewer_experts(
    directory: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model this small would not fill what torch asks of a driver at a time.
    monkeypatch.setitem(caching_allocator.SIZES, "LARGE", 0)
    monkeypatch.setitem(caching_allocator.SIZES, "GRANULE", 512)
    cache_bytes = paged_models.gpu_cache_bytes(read_config(directory), paged_models.CONTEXT_SIZE)
    planned, had = share(directory, 0.6) + cache_bytes, share(directory, 0.3) + cache_bytes
    gpu = FakeGpu(had + paged_models.GPU_ROOM)
    model = on_gpu(directory, gpu, monkeypatch, upper=0.6)
    memory = paged_experts(model).top.memory
    assert isinstance(memory, GpuMemory)
    assert had - planned / 8 < memory.num_bytes <= had < memory.planned_bytes
    assert memory.planned_bytes < planned + plan_of(directory).frame_bytes
    notes = "\n".join(model.experts.describe())
    assert f"({format_bytes(memory.planned_bytes)} planned)" in notes
    assert "neither page-locked nor locked" in notes
    assert torch.equal(talk(model), expected)


def test_a_gpu_without_room_for_one_token_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_bytes = paged_models.gpu_cache_bytes(read_config(directory), paged_models.CONTEXT_SIZE)
    plan = plan_of(directory)
    least = plan.frame_bytes * (plan.least_frames + -(-cache_bytes // plan.frame_bytes))
    gpu = FakeGpu(least - 1 + paged_models.GPU_ROOM)
    with pytest.raises(DoesNotFit, match="one token's experts"):
        on_gpu(directory, gpu, monkeypatch)
    with pytest.raises(DoesNotFit, match="of workspace"):
        on_gpu(directory, FakeGpu(paged_models.GPU_ROOM - 1), monkeypatch)


def test_conversations_have_what_was_kept_for_them_and_no_more(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_gpu(directory, FakeGpu(), monkeypatch)
    frames = paged_experts(model).top.cache.slots.num_frames
    owner, other = Engine(model, 8), Engine(model, 8)
    model.experts.make_room(owner, paged_models.GPU_ROOM)
    with pytest.raises(DoesNotFit, match=r"64\.0 MiB was kept"):
        model.experts.make_room(other, 1)
    model.experts.make_room(owner, 0)
    model.experts.make_room(other, 1)
    assert paged_experts(model).top.cache.slots.num_frames == frames
