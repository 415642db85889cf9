"""Measures how fast CPU and GPU read weights for one token and compute for many, at the published sizes.

Weights lie in a memory larger than caches, and each call takes the next of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
from torch.nn import functional

from ernie_local.kernels.arguments import ExpertsCall, PackedMatrix
from ernie_local.kernels.experts import add_packed_experts
from ernie_local.kernels.linear import packed_linear
from ernie_local.kernels.memory import empty_bytes, empty_pinned
from ernie_local.machine.random_model import RandomWeights
from ernie_local.packing import PageLayout, find_format
from ernie_local.packing.formats import formats_for
from ernie_local.planner.core_kinds import CoreKinds
from ernie_local.planner.profile import EFFICIENCY_CORE_MEASUREMENTS, Measurement
from ernie_local.planner.rates import GpuRates
from ernie_local.sizes import MIB

_ROUNDS = 7
# Rounds of some hundredths of a second: shorter ones measure the scheduler.
CALLS_A_ROUND = 8
_DISTINCT_PAGES = 6
_PRODUCT_SIZE = 4096  # of matrices on a GPU

PROMPT = "prompt_operations_per_second"
PLAIN_PROMPT = "plain_prompt_operations_per_second"
GPU_MEMORY = "gpu_memory_bytes_per_second"
GPU_LINK = "gpu_link_bytes_per_second"
GPU_OPERATIONS = "gpu_operations_per_second"

Clock = Callable[[], float]
_Calls = tuple[list[Callable[[], object]], int]  # each reads one part of the weights, with its bytes


def call_seconds(run: Callable[[], object], rounds: int, clock: Clock) -> list[float]:
    """Of some calls behind a first one, which has paid for memory that the others find ready."""
    seconds = []
    for _ in range(1 + rounds):
        start = clock()
        run()
        seconds.append(clock() - start)
    return seconds[1:]


def measure_rate(
    run: Callable[[], object], work: float, rounds: int = _ROUNDS, clock: Clock = time.perf_counter
) -> Measurement:
    """Work a second of `run`, where each call does `work` of it; a first call is not counted."""
    with torch.inference_mode():
        return Measurement.of([work / seconds for seconds in call_seconds(run, rounds, clock)])


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """What is computed with, by default as in a layer of the published model."""

    hidden: int = 2560
    inner: int = 1536
    dense_rows: int = 12288
    top_k: int = 6
    prompt_tokens: int = 256

    def page_layout(self, format_name: str) -> PageLayout:
        """The page of one expert."""
        low_bit = find_format(format_name)
        return PageLayout(low_bit, low_bit, self.hidden, self.inner)

    def random_slots(self, format_name: str, num_slots: int) -> torch.Tensor:
        """(num_slots, page_bytes) uint8; a few pages in turn, as values do not change the time."""
        layout, random = self.page_layout(format_name), RandomWeights()
        pages = [random.page(layout) for _ in range(_DISTINCT_PAGES)]
        slots = empty_bytes(num_slots * layout.page_bytes).view(num_slots, -1)
        for slot, page in zip(slots, cycle(pages), strict=False):
            slot.copy_(page)
        return slots


def format_measurement(format_name: str) -> str:
    """The name of the rate at which one token's weights in this format are read."""
    return f"{format_name}_bytes_per_second"


def measured_formats() -> tuple[str, ...]:
    """Names of the packed formats that `measure_kernels` measures, in its order."""
    return tuple(one.name for one in (*formats_for("bench experts"), *formats_for("bench dense")))


def measure_kernels(
    memory_bytes: int = 256 * MIB, clock: Clock = time.perf_counter, sizes: LayerSizes | None = None
) -> Iterator[tuple[str, Measurement]]:
    """Name and rate, each as soon as it is there: bytes a second of one token, then operations of many.

    memory_bytes: of the weights that a token's kernels read in turn, at least two of each kind. An operation
    is a multiplication or an addition.
    """
    sizes = LayerSizes() if sizes is None else sizes
    for name in (one.name for one in formats_for("bench experts")):
        yield format_measurement(name), _token_rate(expert_calls(sizes, name, memory_bytes), clock)
    for name in (one.name for one in formats_for("bench dense")):
        yield format_measurement(name), _token_rate(_dense_calls(sizes, name, memory_bytes), clock)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        yield format_measurement(name), _token_rate(_plain_calls(sizes, dtype, memory_bytes), clock)
    yield PROMPT, _prompt_rate(sizes, clock)
    hidden = torch.randn(sizes.prompt_tokens, sizes.hidden)
    weights = torch.randn(4 * sizes.inner, sizes.hidden)
    operations = 2 * sizes.prompt_tokens * weights.numel()
    yield PLAIN_PROMPT, measure_rate(lambda: functional.linear(hidden, weights), operations, clock=clock)


def measure_core_kinds(
    kinds: CoreKinds,
    set_threads: Callable[[int], None] = torch.set_num_threads,
    memory_bytes: int = 256 * MIB,
    clock: Clock = time.perf_counter,
    sizes: LayerSizes | None = None,
) -> dict[str, Measurement]:
    """Rates of w4 experts, for a token and for a prompt, with performance cores alone and with all."""
    sizes = LayerSizes() if sizes is None else sizes
    (all_token, token), (all_prompt, prompt) = EFFICIENCY_CORE_MEASUREMENTS
    measured = {}
    for threads, token_name, prompt_name in (
        (kinds.performance, token, prompt),
        (kinds.all, all_token, all_prompt),
    ):
        set_threads(threads)
        measured[token_name] = _token_rate(expert_calls(sizes, "w4", memory_bytes), clock)
        measured[prompt_name] = _prompt_rate(sizes, clock)
    return measured


def expert_calls(sizes: LayerSizes, format_name: str, memory_bytes: int) -> _Calls:
    """Calls that each compute one token's experts, all with different pages; and the bytes of each."""
    num_bytes = sizes.top_k * sizes.page_layout(format_name).page_bytes
    num_calls = max(2, memory_bytes // num_bytes)
    slots = sizes.random_slots(format_name, num_calls * sizes.top_k)
    all_ids = torch.arange(len(slots)).view(num_calls, 1, sizes.top_k)
    return [_experts_call(slots, ids, sizes.hidden) for ids in all_ids], num_bytes


def measure_gpu(
    device: torch.device,
    num_bytes: int = 256 * MIB,
    product_size: int = _PRODUCT_SIZE,
    clock: Clock = time.perf_counter,
) -> dict[str, Measurement]:
    """By name: bytes a second of its memory, and of page-locked memory copied to it; operations a second.

    device: a CUDA GPU; the CPU serves a test.
    """
    is_gpu = device.type == "cuda"
    dtype = torch.float16 if is_gpu else torch.float32
    host = (empty_pinned if is_gpu else torch.empty)((num_bytes // 4,), dtype=torch.float32).fill_(1)
    memory = torch.empty_like(host, device=device)
    square = torch.ones(product_size, product_size, dtype=dtype, device=device)

    def rate(run: Callable[[], object], work: float) -> Measurement:
        def finish() -> None:
            run()
            if is_gpu:
                torch.cuda.synchronize(device)

        return measure_rate(finish, work, clock=clock)

    return {
        GPU_LINK: rate(lambda: memory.copy_(host, non_blocking=True), num_bytes),
        GPU_MEMORY: rate(memory.sum, num_bytes),
        GPU_OPERATIONS: rate(lambda: square @ square, 2 * product_size**3),
    }


def gpu_rates(measured: Mapping[str, Measurement]) -> GpuRates:
    """The medians of what `measure_gpu` found."""
    return GpuRates(*(measured[name].median for name in (GPU_MEMORY, GPU_LINK, GPU_OPERATIONS)))


def _token_rate(calls: _Calls, clock: Clock) -> Measurement:
    each, num_bytes = calls
    turn = cycle(each)

    def run() -> None:
        for _ in range(CALLS_A_ROUND):
            next(turn)()

    return measure_rate(run, CALLS_A_ROUND * num_bytes, clock=clock)


def _prompt_rate(sizes: LayerSizes, clock: Clock) -> Measurement:
    slots = sizes.random_slots("w4", 2 * _DISTINCT_PAGES)
    ids = torch.rand(sizes.prompt_tokens, len(slots)).topk(sizes.top_k).indices  # (tokens, top_k)
    operations = 2 * ids.numel() * 3 * sizes.hidden * sizes.inner
    return measure_rate(_experts_call(slots, ids, sizes.hidden), operations, clock=clock)


def _experts_call(slots: torch.Tensor, ids: torch.Tensor, hidden_size: int) -> Callable[[], object]:
    """ids: (tokens, top_k), of slots."""
    hidden, output = torch.randn(len(ids), hidden_size), torch.zeros(len(ids), hidden_size)
    weights = torch.full(ids.shape, 1 / ids.shape[1])
    call = ExpertsCall(hidden, slots, ids, weights, None, torch.arange(len(slots)))
    return partial(add_packed_experts, output, call)


def _dense_calls(sizes: LayerSizes, format_name: str, memory_bytes: int) -> _Calls:
    low_bit = find_format(format_name)
    num_bytes = low_bit.matrix_bytes(sizes.dense_rows, sizes.hidden)
    memory = empty_bytes(max(2, memory_bytes // num_bytes) * num_bytes).view(-1, num_bytes)
    torch.cat(list(RandomWeights().matrix(low_bit, sizes.dense_rows, sizes.hidden)), out=memory[0])
    memory[1:] = memory[0]
    hidden = torch.randn(1, sizes.hidden)
    matrices = (PackedMatrix(packed, format_name, sizes.dense_rows) for packed in memory)
    return [partial(packed_linear, hidden, matrix) for matrix in matrices], num_bytes


def _plain_calls(sizes: LayerSizes, dtype: torch.dtype, memory_bytes: int) -> _Calls:
    rows = 4 * sizes.inner
    num_bytes = rows * sizes.hidden * dtype.itemsize
    weights = torch.ones(max(2, memory_bytes // num_bytes), rows, sizes.hidden, dtype=dtype)
    hidden = torch.randn(1, sizes.hidden).to(dtype)
    return [partial(functional.linear, hidden, matrix) for matrix in weights], num_bytes
