"""Measures how fast the CPU reads weights for one token and computes for many, at the published sizes.

Weights lie in a memory larger than caches, and each call takes the next of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
from torch.nn import functional

from ernie_local.kernels.arguments import ExpertsCall, PackedMatrix
from ernie_local.kernels.experts import add_packed_experts
from ernie_local.kernels.linear import packed_linear
from ernie_local.kernels.memory import empty_bytes
from ernie_local.machine.random_model import RandomWeights
from ernie_local.machine.timing import Clock, measure_rate
from ernie_local.packing import PageLayout, find_format
from ernie_local.packing.formats import Purpose, formats_for
from ernie_local.planner.profile import Measurement
from ernie_local.sizes import MIB

_DISTINCT_PAGES = 6
# Rounds of some hundredths of a second: shorter ones measure the scheduler.
CALLS_A_ROUND = 8

PROMPT = "prompt_operations_per_second"
PLAIN_PROMPT = "plain_prompt_operations_per_second"

_Calls = tuple[list[Callable[[], object]], int]  # each reads one part of the weights, with its bytes


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
        for index, slot in enumerate(slots):
            slot.copy_(pages[index % len(pages)])
        return slots


def format_measurement(format_name: str) -> str:
    """The name of the rate at which one token's weights in this format are read."""
    return f"{format_name}_bytes_per_second"


def measured_formats() -> tuple[str, ...]:
    """Names of the packed formats that `measure_kernels` measures, in its order."""
    return *_names("bench experts"), *_names("bench dense")


def _names(purpose: Purpose) -> tuple[str, ...]:
    return tuple(low_bit.name for low_bit in formats_for(purpose))


def measure_kernels(
    memory_bytes: int = 256 * MIB, clock: Clock = time.perf_counter, sizes: LayerSizes | None = None
) -> Iterator[tuple[str, Measurement]]:
    """Name and rate, each as soon as it is there: bytes a second of one token, then operations of many.

    memory_bytes: of the weights that a token's kernels read in turn, at least two of each kind. An operation
    is a multiplication or an addition.
    """
    sizes = LayerSizes() if sizes is None else sizes
    for name in _names("bench experts"):
        yield format_measurement(name), _token_rate(expert_calls(sizes, name, memory_bytes), clock)
    for name in _names("bench dense"):
        yield format_measurement(name), _token_rate(_dense_calls(sizes, name, memory_bytes), clock)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield format_measurement(name), _token_rate(_plain_calls(sizes, dtype, memory_bytes), clock)
    yield PROMPT, _prompt_rate(sizes, clock)
    yield PLAIN_PROMPT, _plain_prompt_rate(sizes, clock)


def expert_calls(sizes: LayerSizes, format_name: str, memory_bytes: int) -> _Calls:
    """Calls that each compute one token's experts, all with different pages; and the bytes of each."""
    top_k, page_bytes = sizes.top_k, sizes.page_layout(format_name).page_bytes
    slots = sizes.random_slots(format_name, max(2, memory_bytes // (top_k * page_bytes)) * top_k)
    hidden, output = torch.randn(1, sizes.hidden), torch.zeros(1, sizes.hidden)
    weights = torch.full((1, top_k), 1 / top_k)
    places = torch.arange(len(slots))

    def call(first: int) -> Callable[[], object]:
        ids = torch.arange(first, first + top_k).view(1, top_k)
        return lambda: add_packed_experts(output, ExpertsCall(hidden, slots, ids, weights, None, places))

    return [call(first) for first in range(0, len(slots), top_k)], top_k * slots.shape[1]


def _token_rate(calls: _Calls, clock: Clock) -> Measurement:
    each, num_bytes = calls
    turn = cycle(each)

    def run() -> None:
        for _ in range(CALLS_A_ROUND):
            next(turn)()

    with torch.inference_mode():
        return measure_rate(run, CALLS_A_ROUND * num_bytes, clock=clock)


def _dense_calls(sizes: LayerSizes, format_name: str, memory_bytes: int) -> _Calls:
    low_bit = find_format(format_name)
    num_bytes = low_bit.matrix_bytes(sizes.dense_rows, sizes.hidden)
    memory = empty_bytes(max(2, memory_bytes // num_bytes) * num_bytes).view(-1, num_bytes)
    torch.cat(list(RandomWeights().matrix(low_bit, sizes.dense_rows, sizes.hidden)), out=memory[0])
    memory[1:] = memory[0]
    hidden = torch.randn(1, sizes.hidden)

    def call(matrix: torch.Tensor) -> Callable[[], object]:
        return lambda: packed_linear(hidden, PackedMatrix(matrix, format_name, sizes.dense_rows))

    return [call(matrix) for matrix in memory], num_bytes


def _plain_calls(sizes: LayerSizes, dtype: torch.dtype, memory_bytes: int) -> _Calls:
    rows = 4 * sizes.inner
    num_bytes = rows * sizes.hidden * dtype.itemsize
    weights = torch.ones(max(2, memory_bytes // num_bytes), rows, sizes.hidden, dtype=dtype)
    hidden = torch.randn(1, sizes.hidden).to(dtype)

    def call(matrix: torch.Tensor) -> Callable[[], object]:
        return lambda: functional.linear(hidden, matrix)

    return [call(matrix) for matrix in weights], num_bytes


def _prompt_rate(sizes: LayerSizes, clock: Clock) -> Measurement:
    num_tokens, top_k = sizes.prompt_tokens, sizes.top_k
    slots = sizes.random_slots("w4", 2 * _DISTINCT_PAGES)
    hidden, output = torch.randn(num_tokens, sizes.hidden), torch.zeros(num_tokens, sizes.hidden)
    ids = torch.rand(num_tokens, len(slots)).topk(top_k).indices  # (tokens, top_k)
    weights = torch.full((num_tokens, top_k), 1 / top_k)
    places = torch.arange(len(slots))
    operations = 2 * num_tokens * top_k * 3 * sizes.hidden * sizes.inner
    with torch.inference_mode():
        return measure_rate(
            lambda: add_packed_experts(output, ExpertsCall(hidden, slots, ids, weights, None, places)),
            operations,
            clock=clock,
        )


def _plain_prompt_rate(sizes: LayerSizes, clock: Clock) -> Measurement:
    hidden, weights = (
        torch.randn(sizes.prompt_tokens, sizes.hidden),
        torch.randn(4 * sizes.inner, sizes.hidden),
    )
    operations = 2 * sizes.prompt_tokens * weights.numel()
    with torch.inference_mode():
        return measure_rate(lambda: functional.linear(hidden, weights), operations, clock=clock)
