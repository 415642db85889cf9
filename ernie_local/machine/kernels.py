"""How fast the CPU passes over weights for one token, and computes for many, at the published model's sizes.

Weights lie in a memory larger than caches, and each call takes the next of them. Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from torch.nn import functional

from ernie_local.kernels.arguments import ExpertsCall, PackedMatrix
from ernie_local.kernels.experts import add_packed_experts
from ernie_local.kernels.linear import packed_linear
from ernie_local.kernels.memory import empty_bytes
from ernie_local.machine.random_weights import RandomWeights
from ernie_local.machine.timing import Clock, measure_rate
from ernie_local.packing import PageLayout, find_format
from ernie_local.planner.profile import Measurement
from ernie_local.sizes import MIB

_HIDDEN, _INNER, _DENSE_ROWS, _TOP_K = 2560, 1536, 12288, 6
_DISTINCT_PAGES = 6
_PROMPT_TOKENS = 256
# Rounds of some hundredths of a second: shorter ones measure the scheduler.
_CALLS_A_ROUND = 8

PROMPT = "prompt_operations_per_second"
PLAIN_PROMPT = "plain_prompt_operations_per_second"


def format_measurement(format_name: str) -> str:
    """The name under which the rate of one token's weights in this format is found."""
    return f"{format_name}_bytes_per_second"


def measure_kernels(
    memory_bytes: int = 256 * MIB, clock: Clock = time.perf_counter
) -> Iterator[tuple[str, Measurement]]:
    """Name and rate, each as soon as it is there: bytes a second of one token, then operations of many.

    memory_bytes: of the weights that a token's kernels pass over in turn, at least two of each kind. An
    operation is a multiplication or an addition.
    """
    for name in ("w4", "w2"):
        yield format_measurement(name), _token_rate(_expert_calls(name, memory_bytes), clock)
    yield format_measurement("w8"), _token_rate(_dense_calls("w8", memory_bytes), clock)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield format_measurement(name), _token_rate(_plain_calls(dtype, memory_bytes), clock)
    yield PROMPT, _prompt_rate(clock)
    yield PLAIN_PROMPT, _plain_prompt_rate(clock)


_Calls = tuple[list[Callable[[], object]], int]  # what passes over one part of the weights, and its bytes


def _token_rate(calls: _Calls, clock: Clock) -> Measurement:
    each, num_bytes = calls
    turn = cycle(each)

    def run() -> None:
        for _ in range(_CALLS_A_ROUND):
            next(turn)()

    with torch.inference_mode():
        return measure_rate(run, _CALLS_A_ROUND * num_bytes, clock=clock)


def _expert_calls(format_name: str, memory_bytes: int) -> _Calls:
    slots = _random_slots(format_name, max(2, memory_bytes // (_TOP_K * _page_bytes(format_name))) * _TOP_K)
    hidden, output = torch.randn(1, _HIDDEN), torch.zeros(1, _HIDDEN)
    weights = torch.full((1, _TOP_K), 1 / _TOP_K)
    places = torch.arange(len(slots))

    def call(first: int) -> Callable[[], object]:
        ids = torch.arange(first, first + _TOP_K).view(1, _TOP_K)
        return lambda: add_packed_experts(output, ExpertsCall(hidden, slots, ids, weights, None, places))

    return [call(first) for first in range(0, len(slots), _TOP_K)], _TOP_K * slots.shape[1]


def _dense_calls(format_name: str, memory_bytes: int) -> _Calls:
    low_bit = find_format(format_name)
    num_bytes = low_bit.matrix_bytes(_DENSE_ROWS, _HIDDEN)
    memory = empty_bytes(max(2, memory_bytes // num_bytes) * num_bytes).view(-1, num_bytes)
    torch.cat(list(RandomWeights().matrix(low_bit, _DENSE_ROWS, _HIDDEN)), out=memory[0])
    memory[1:] = memory[0]
    hidden = torch.randn(1, _HIDDEN)

    def call(matrix: torch.Tensor) -> Callable[[], object]:
        return lambda: packed_linear(hidden, PackedMatrix(matrix, format_name, _DENSE_ROWS))

    return [call(matrix) for matrix in memory], num_bytes


def _plain_calls(dtype: torch.dtype, memory_bytes: int) -> _Calls:
    rows = 4 * _INNER
    num_bytes = rows * _HIDDEN * dtype.itemsize
    weights = torch.ones(max(2, memory_bytes // num_bytes), rows, _HIDDEN, dtype=dtype)
    hidden = torch.randn(1, _HIDDEN).to(dtype)

    def call(matrix: torch.Tensor) -> Callable[[], object]:
        return lambda: functional.linear(hidden, matrix)

    return [call(matrix) for matrix in weights], num_bytes


def _prompt_rate(clock: Clock) -> Measurement:
    slots = _random_slots("w4", 2 * _DISTINCT_PAGES)
    hidden = torch.randn(_PROMPT_TOKENS, _HIDDEN)
    output = torch.zeros(_PROMPT_TOKENS, _HIDDEN)
    ids = torch.rand(_PROMPT_TOKENS, len(slots)).topk(_TOP_K).indices  # (tokens, top_k)
    weights = torch.full((_PROMPT_TOKENS, _TOP_K), 1 / _TOP_K)
    places = torch.arange(len(slots))
    operations = 2 * _PROMPT_TOKENS * _TOP_K * 3 * _HIDDEN * _INNER
    with torch.inference_mode():
        return measure_rate(
            lambda: add_packed_experts(output, ExpertsCall(hidden, slots, ids, weights, None, places)),
            operations,
            clock=clock,
        )


def _plain_prompt_rate(clock: Clock) -> Measurement:
    hidden, weights = torch.randn(_PROMPT_TOKENS, _HIDDEN), torch.randn(4 * _INNER, _HIDDEN)
    operations = 2 * _PROMPT_TOKENS * weights.numel()
    with torch.inference_mode():
        return measure_rate(lambda: functional.linear(hidden, weights), operations, clock=clock)


def _page_layout(format_name: str) -> PageLayout:
    low_bit = find_format(format_name)
    return PageLayout(low_bit, low_bit, _HIDDEN, _INNER)


def _page_bytes(format_name: str) -> int:
    return _page_layout(format_name).page_bytes


def _random_slots(format_name: str, num_slots: int) -> torch.Tensor:
    """(num_slots, page_bytes) uint8; a few pages again and again, for time does not depend on them."""
    layout, random = _page_layout(format_name), RandomWeights()
    pages = [random.page(layout) for _ in range(_DISTINCT_PAGES)]
    slots = empty_bytes(num_slots * layout.page_bytes).view(num_slots, -1)
    for index, slot in enumerate(slots):
        slot.copy_(pages[index % len(pages)])
    return slots
