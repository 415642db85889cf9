"""Files that break while experts are read from them: a clear error or right answers, and never a hang."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import pytest
import torch

from ernie_local.checkpoint import uncached_file
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import ModelUnusable
from ernie_local.experts.device import PageMemory
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.readers import DiskReader, PageRange, PageStore
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.kv_cache import kv_bytes_per_token
from ernie_local.model.memory_use import attention_bytes, cpu_attention_way
from tests.runtime.paged_models import build, paged_experts, plan_of

CONTEXT = 64
PROMPT = list(range(20, 50))


@pytest.fixture(scope="module")
def original(packed_nano: Path) -> Path:
    return packed_nano


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A test that hangs fails after a minute."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def small(directory: Path) -> ErnieModel:
    """Almost every page is read whenever it is wanted."""
    config = read_config(directory)
    way = cpu_attention_way(config, "float32")
    attended = attention_bytes(config.text, len(PROMPT), CONTEXT, way)
    beside = 3 * (CONTEXT * kv_bytes_per_token(config.text, torch.float32) + attended)
    return build(directory, plan_of(directory).least_bytes + beside)


def logits(model: ErnieModel) -> torch.Tensor:
    engine = Engine(model, CONTEXT)
    return torch.stack([engine.prefill(PROMPT), *(engine.decode(token) for token in range(60, 66))])


def weights_file(directory: Path) -> Path:
    return directory / "model.safetensors"


def range_of_a_text_page(model: ErnieModel) -> PageRange:
    """Of an expert that the prompt asks for: one that was read."""
    store = paged_experts(model).store
    key = next(key for key in sorted(store.checksums) if key.bank == "text")
    return store.ranges[key][0]


def test_a_bit_that_turns_while_the_model_runs_is_found(directory: Path) -> None:
    model = small(directory)
    expected = logits(model)
    place = range_of_a_text_page(model)
    with place.path.open("r+b") as file:
        file.seek(place.offset + 1000)
        byte = file.read(1)[0]
        file.seek(place.offset + 1000)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(
        ModelUnusable, match=r"the page of text expert \d+ in layer \d+, .* it had [0-9a-f]{16} before"
    ):
        logits(model)
    with place.path.open("r+b") as file:
        file.seek(place.offset + 1000)
        file.write(bytes([byte]))
    assert torch.equal(logits(model), expected)


def test_a_bit_that_turns_on_its_way_once_is_read_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(directory)
    expected = logits(model)
    place, read, flips = range_of_a_text_page(model), uncached_file.UncachedFile.read, [1]

    def flaky(self: uncached_file.UncachedFile, offset: int, into: memoryview) -> None:
        read(self, offset, into)
        if offset == place.offset and flips:
            flips.pop()
            into[500] ^= 1

    monkeypatch.setattr(uncached_file.UncachedFile, "read", flaky)
    assert torch.equal(logits(model), expected)
    assert not flips


def test_a_bit_that_turns_at_the_first_reading_is_read_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, fresh = (paged_experts(small(directory)).store for _ in range(2))
    key, read, flips = next(iter(store.page_bytes)), uncached_file.UncachedFile.read, [1]
    into = PageMemory(1 << 20).bytes[: store.page_bytes[key]]
    store.read(key, into)
    expected = into.clone()

    def flaky(self: uncached_file.UncachedFile, offset: int, into: memoryview) -> None:
        read(self, offset, into)
        if flips:
            flips.pop()
            into[500] ^= 1

    monkeypatch.setattr(uncached_file.UncachedFile, "read", flaky)
    fresh.read(key, into)
    assert torch.equal(into, expected)
    assert not flips


def test_a_file_that_is_cut_while_the_model_runs(directory: Path) -> None:
    model = small(directory)
    logits(model)
    os.truncate(weights_file(directory), weights_file(directory).stat().st_size // 3)
    with pytest.raises(ModelUnusable, match=r"bytes at \d+ were requested, the file ends at \d+"):
        logits(model)


def test_a_file_that_is_replaced_while_the_model_runs_is_the_old_one_for_it(directory: Path) -> None:
    model = small(directory)
    expected = logits(model)
    other = directory / "other"
    other.write_bytes(b"something else")
    other.replace(weights_file(directory))
    assert torch.equal(logits(model), expected)


def test_a_disk_that_fails_at_one_page_loses_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(directory)
    expected = logits(model)
    place, read = range_of_a_text_page(model), os.preadv
    broken = [True]

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset == place.offset and broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, buffers, offset)

    monkeypatch.setattr("os.preadv", failing)
    engine = Engine(model, CONTEXT)
    with pytest.raises(ModelUnusable, match=f"cannot be read at byte {place.offset}"):
        engine.prefill(PROMPT)
    assert engine.length == 0
    broken.clear()
    assert torch.equal(engine.prefill(PROMPT), expected[0])


def test_reads_that_give_less_than_asked_go_on(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(directory)
    expected, read = logits(model), os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return min(read(descriptor, buffers, offset), 5000)

    monkeypatch.setattr("os.preadv", short)
    assert torch.equal(logits(model), expected)


def test_without_direct_reads_pages_come_through_the_cache(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(build(directory, None))
    monkeypatch.setattr(uncached_file, "_open_direct", lambda *_: None)
    model = small(directory)
    assert not paged_experts(model).store.is_direct
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("when", [0, 1, 7, 40])
def test_ctrl_c_in_the_middle_of_a_read(directory: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    model = small(directory)
    expected = logits(model)
    wait, calls = DiskReader.wait, [0]

    def interrupted(self: DiskReader, keys: Sequence[ExpertKey]) -> None:
        calls[0] += 1
        if calls[0] == when + 1:
            raise KeyboardInterrupt
        wait(self, keys)

    monkeypatch.setattr(DiskReader, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        logits(model)
    experts = paged_experts(model)
    assert not experts.ram.cache.in_flight
    assert torch.equal(logits(model), expected)


def test_a_page_of_other_bytes_is_refused_the_first_time(directory: Path) -> None:
    model = small(directory)
    key = next(iter(paged_experts(model).store.page_bytes))
    place = paged_experts(model).store.ranges[key][0]
    with weights_file(directory).open("r+b") as file:
        file.seek(place.offset)
        file.write(b"XXXX")
    store = paged_experts(build(directory, plan_of(directory).most_bytes)).store
    with pytest.raises(ModelUnusable, match="begins with b'XXXX'"):
        store.read(key, PageMemory(1 << 20).bytes[: store.page_bytes[key]])


def test_two_models_on_one_checkpoint_do_not_disturb_each_other(directory: Path) -> None:
    one, other = small(directory), small(directory)
    assert torch.equal(logits(one), logits(other))
    paged_experts(one).close()
    assert torch.equal(logits(other), logits(build(directory, None)))


def test_a_store_without_its_file_says_so(tmp_path: Path) -> None:
    ranges = {ExpertKey(1, "text", 0): (PageRange(tmp_path / "gone", 0, 0, 4096),)}
    with pytest.raises(ModelUnusable, match="gone cannot be read at byte 0"):
        PageStore(ranges, lambda _key, _page: None)
