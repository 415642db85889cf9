"""Predicts how fast a machine would decode a trace, with or without a GPU.

The runtime's own policies run over readers that take time instead of reading. Prompts fill the memories and
take no time: what they compute is not in a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import FETCH, MissRule, PagingStats
from ernie_local.experts.traffic import PageTraffic
from ernie_local.experts.two_levels import PinningReader, TwoLevels
from ernie_local.replay.replay import check_budget, walk
from ernie_local.replay.trace import Trace


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """Of a GPU: its memory as kernels read experts, the link to it, a copy's seconds besides its bytes."""

    memory_bytes_per_second: float
    link_bytes_per_second: float
    copy_seconds: float


@dataclass(frozen=True, slots=True)
class MachineTimes:
    """disk_bytes_per_second: of pages; memory_bytes_per_second: of experts as the processor computes them.

    token_seconds: of a token without its experts, dense weights included; layer_seconds: more for each layer
    with experts; page_seconds: of the host for each page that comes from disk.
    """

    disk_bytes_per_second: float
    memory_bytes_per_second: float
    token_seconds: float = 0.0
    layer_seconds: float = 0.0
    page_seconds: float = 0.0
    gpu: GpuTimes | None = None


@dataclass(frozen=True, slots=True)
class Simulated:
    """stats: what paging would count, waits predicted; decode_seconds: of all decoded tokens, predicted."""

    stats: PagingStats
    decode_seconds: float

    @property
    def predicted_tokens_per_second(self) -> float | None:
        """None where the trace has no decoded token."""
        return self.stats.decoded_tokens / self.decode_seconds if self.decode_seconds else None


@dataclass(slots=True)
class _Clock:
    """now: of the host, which waits for the GPU after each layer; gpu: when the GPU has done its work."""

    now: float = 0.0
    gpu: float = 0.0
    runs: bool = False  # in decode alone


class _Pipe:
    """A PageReader: a disk, or a link behind it, that brings one page after the other."""

    def __init__(
        self,
        clock: _Clock,
        seconds: Callable[[ExpertKey], float],
        before: _Pipe | None = None,
        host_seconds: float = 0.0,
    ) -> None:
        """seconds: of a page; before: the pipe that brings it pages; host_seconds: of the host for a page."""
        self.waited_seconds = 0.0
        self._clock = clock
        self._seconds = seconds
        self._before = before
        self._host_seconds = host_seconds
        self._is_free = 0.0
        self._ready: dict[ExpertKey, float] = {}

    def start(self, key: ExpertKey) -> None:
        """Note when the page will have come."""
        if not self._clock.runs:
            self._ready[key] = 0.0
            return
        is_there = 0.0 if self._before is None else self._before._last([key])
        begin = max(self._clock.now, self._is_free, is_there)
        self._is_free = self._ready[key] = begin + self._seconds(key)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """Let the clock wait for these pages."""
        clock = self._clock
        if self._before is None:
            self.arrive(keys)
            clock.now += self._host_seconds * len(keys) * clock.runs
        else:
            # The host waits for the disk before it can give the link a page; for the link the GPU waits.
            self._before.arrive(keys)
            ready = self._last(keys)
            self.waited_seconds += max(0.0, ready - max(clock.now, clock.gpu))
            clock.gpu = max(clock.gpu, ready)
        for key in keys:
            del self._ready[key]

    def arrive(self, keys: Sequence[ExpertKey]) -> None:
        """Let the host wait for those of these pages that are in flight."""
        ready = self._last(keys)
        self.waited_seconds += max(0.0, ready - self._clock.now)
        self._clock.now = max(self._clock.now, ready)

    def _last(self, keys: Sequence[ExpertKey]) -> float:
        """When all have come; 0 if they were there before.

        The time of those that a prompt takes over from decode is not counted.
        """
        return max((self._ready.get(key, 0.0) for key in keys), default=0.0) if self._clock.runs else 0.0

    def abort(self) -> None:
        """Forget all pages in flight."""
        self._ready.clear()


def simulate(
    trace: Trace,
    ram_bytes: int,
    times: MachineTimes,
    gpu_bytes: int | None = None,
    rule: MissRule = FETCH,
) -> Simulated:
    """Decode a trace with experts in `ram_bytes`, and `gpu_bytes` of a GPU above where `times` has one.

    DoesNotFit for a memory in which a token's experts have no room.
    """
    assert (gpu_bytes is None) == (times.gpu is None)
    for num_bytes in (ram_bytes, gpu_bytes):
        if num_bytes is not None:
            check_budget(trace, num_bytes)
    clock = _Clock()
    plan, sizes, gpu = trace.plan, trace.page_bytes, times.gpu
    disk = _Pipe(clock, lambda key: sizes[key] / times.disk_bytes_per_second, host_seconds=times.page_seconds)
    stats = PagingStats(gpu=None if gpu is None else PagingStats())
    below = PageTraffic(plan.build_cache(ram_bytes), plan, disk, stats)
    traffic: PageTraffic | TwoLevels = below
    link: _Pipe | None = None
    if gpu_bytes is not None and gpu is not None:
        link_speed, copy_seconds = gpu.link_bytes_per_second, gpu.copy_seconds
        link = _Pipe(clock, lambda key: copy_seconds + sizes[key] / link_speed, disk)
        above = PageTraffic(plan.build_cache(gpu_bytes), plan, PinningReader(below, link), stats.gpu)
        traffic = TwoLevels(above, below, rule)
    seconds = _run(trace, traffic, below, clock, times)
    stats.decode_wait_seconds = disk.waited_seconds
    if stats.gpu is not None and link is not None:
        stats.gpu.decode_wait_seconds = link.waited_seconds
    return Simulated(stats, seconds)


def _run(
    trace: Trace, traffic: PageTraffic | TwoLevels, below: PageTraffic, clock: _Clock, times: MachineTimes
) -> float:
    """Seconds of all decoded tokens."""
    for step in walk(trace, traffic, below.keys):
        clock.runs = step.is_decode
        if not step.is_decode:
            for _ in step.groups:
                pass
            continue
        clock.now += times.layer_seconds + (times.token_seconds if step.is_first else 0.0)
        for group in step.groups:
            num_bytes = sum(trace.page_bytes[key] for key in group.keys)
            if times.gpu is None or group.level > 0:
                clock.now += num_bytes / times.memory_bytes_per_second
            else:  # begun now, and computed when the GPU has come to it
                clock.gpu = max(clock.gpu, clock.now) + num_bytes / times.gpu.memory_bytes_per_second
        clock.now = clock.gpu = max(clock.now, clock.gpu)
    return clock.now
