"""CUDA graphs are recorded as torch's allocator wants it; a stand-in for torch.cuda has its rules.

These are c10/cuda/CUDACachingAllocator.cpp's: a pool that lost its last graph takes no other, and what one
stream freed in a pool serves that stream only.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from ernie_local.kernels.graphs import CudaGraphRecorder

DEVICE = torch.device("cuda", 0)


class PoolGone(Exception):
    """What torch reports as an internal assertion, `use_count > 0`."""


class FakeGraph:
    """As torch.cuda.CUDAGraph: it holds its pool until it is gone."""

    def __init__(self) -> None:
        self.users: Counter[int] = Counter()
        self.handle = 0

    def __del__(self) -> None:
        self.users[self.handle] -= 1

    def pool(self) -> int:
        return self.handle

    def replay(self) -> None:
        pass


class FakeCuda:
    """As much of torch.cuda as recording takes. users: live graphs of each pool that was ever used."""

    def __init__(self) -> None:
        self.users: Counter[int] = Counter()
        self.recorded_on: list[object] = []  # the stream of each recording
        self.modes: list[str] = []
        self.current: object = "main"
        self.CUDAGraph = FakeGraph
        self.Stream = self.new_stream

    def new_stream(self, device: torch.device) -> object:
        return SimpleNamespace(wait_stream=lambda other: None)

    def current_stream(self, device: torch.device) -> object:
        return SimpleNamespace(wait_stream=lambda other: None)

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.current, before = stream, self.current
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(
        self, graph: FakeGraph, pool: int | None, stream: object, capture_error_mode: str
    ) -> Iterator[None]:
        if pool is not None and self.users[pool] == 0:
            raise PoolGone
        graph.users, graph.handle = self.users, 1 + len(self.users) if pool is None else pool
        self.users[graph.handle] += 1
        self.recorded_on.append(stream)
        self.modes.append(capture_error_mode)
        with self.stream(stream):
            yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("CUDAGraph", "Stream", "current_stream", "graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def test_all_pieces_share_a_pool_and_a_stream(cuda: FakeCuda) -> None:
    recorder = CudaGraphRecorder(DEVICE)
    run_on: list[object] = []
    kept = [recorder.record(lambda: run_on.append(cuda.current)) for _ in range(3)]
    assert list(cuda.users.values()) == [len(kept)]
    assert len({id(stream) for stream in [*cuda.recorded_on, *run_on]}) == 1, "warmed up where it is recorded"
    assert cuda.current == "main"
    assert set(cuda.modes) == {"thread_local"}, "readers of pages go on meanwhile"


def test_recording_goes_on_when_all_graphs_were_dropped(cuda: FakeCuda) -> None:
    """As when a cache grew, or a conversation ended and another begins."""
    recorder = CudaGraphRecorder(DEVICE)
    kept = [recorder.record(int) for _ in range(3)]
    kept.clear()
    kept += [recorder.record(int) for _ in range(3)]
    assert [cuda.users[pool] for pool in sorted(cuda.users)] == [0, 3]


def test_one_conversation_keeps_the_pool_for_others(cuda: FakeCuda) -> None:
    recorder = CudaGraphRecorder(DEVICE)
    first, second = [recorder.record(int)], [recorder.record(int)]
    first.clear()
    first.append(recorder.record(int))
    assert list(cuda.users.values()) == [len(first) + len(second)]


def test_an_interrupted_first_recording_is_done_again(cuda: FakeCuda) -> None:
    def interrupt() -> None:
        if cuda.recorded_on:
            raise KeyboardInterrupt

    recorder = CudaGraphRecorder(DEVICE)
    with pytest.raises(KeyboardInterrupt):
        recorder.record(interrupt)
    kept = recorder.record(int)
    assert kept.outputs == 0
    assert list(cuda.users.values()) == [0, 1]
