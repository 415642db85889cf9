"""The packed operators at real shapes, beside a plain read of memory and a large product of torch.

    python benchmarks/kernels.py            # a table; the last line is one JSON object

Decode figures are bytes of packed weights over seconds, prefill figures multiply-adds over seconds. Each is
the median of some calls on weights that no cache holds; rounds of all lines are interleaved. torch multiplies
in bfloat16 where the processor has AVX-512, in float32 elsewhere: without it bfloat16 takes minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch

from ernie_local.kernels.arguments import ExpertsCall, PackedMatrix
from ernie_local.kernels.experts import packed_experts
from ernie_local.kernels.linear import packed_linear
from ernie_local.kernels.memory import empty_bytes
from ernie_local.kernels.native import native_module
from ernie_local.machine.random_model import RandomWeights
from ernie_local.packing import PageLayout, find_format

HIDDEN, TEXT_INNER, VISION_INNER, TOP_K, NUM_EXPERTS = 2560, 1536, 512, 6, 64
PREFILL_TOKENS = 512
TOWER_PATCHES, TOWER_WIDTH = 3600, 1280
CALLS_IN_A_ROW = 20
RANDOM = RandomWeights()


def random_matrix(format_name: str, rows: int, columns: int) -> torch.Tensor:
    return torch.cat(list(RANDOM.matrix(find_format(format_name), rows, columns)))


def random_slots(format_name: str, inner_size: int) -> torch.Tensor:
    low_bit = find_format(format_name)
    layout = PageLayout(low_bit, low_bit, HIDDEN, inner_size)
    slots = empty_bytes(NUM_EXPERTS * layout.page_bytes).view(NUM_EXPERTS, -1)
    for slot in slots:
        slot.copy_(RANDOM.page(layout))
    return slots


def choices(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.rand(num_tokens, NUM_EXPERTS).topk(TOP_K).indices
    return ids, torch.full((num_tokens, TOP_K), 1 / TOP_K)


def decode_experts(format_name: str) -> tuple[Callable[[], object], float]:
    slots = random_slots(format_name, TEXT_INNER)
    hidden = torch.randn(1, HIDDEN)
    return lambda: packed_experts(ExpertsCall(hidden, slots, *choices(1))), TOP_K * slots.shape[1]


def decode_linear(format_name: str) -> tuple[Callable[[], object], float]:
    # Several matrices in turn, so that none stays in a cache.
    matrices = [PackedMatrix(random_matrix(format_name, 12288, HIDDEN), format_name, 12288) for _ in range(6)]
    hidden = torch.randn(1, HIDDEN)
    turn = itertools.cycle(matrices)
    return lambda: packed_linear(hidden, next(turn)), len(matrices[0].packed)


def prefill_experts(format_name: str, inner_size: int) -> tuple[Callable[[], object], float]:
    slots = random_slots(format_name, inner_size)
    hidden = torch.randn(PREFILL_TOKENS, HIDDEN)
    ids, weights = choices(PREFILL_TOKENS)
    work = PREFILL_TOKENS * TOP_K * 3 * HIDDEN * inner_size
    return lambda: packed_experts(ExpertsCall(hidden, slots, ids, weights)), work


def many_tokens_linear(
    format_name: str, num_tokens: int, rows: int, columns: int
) -> tuple[Callable[[], object], float]:
    matrix = PackedMatrix(random_matrix(format_name, rows, columns), format_name, rows)
    hidden = torch.randn(num_tokens, columns)
    return lambda: packed_linear(hidden, matrix), num_tokens * rows * columns


def plain_read() -> tuple[Callable[[], object], float]:
    memory = torch.ones(1 << 27)
    return memory.sum, memory.nbytes


def torch_dtype() -> torch.dtype:
    module = native_module()
    return torch.bfloat16 if module is not None and "avx512f" in module.cpu_features() else torch.float32


def large_product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    left, right = torch.randn(2048, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    return lambda: left @ right, 2048 * 4096 * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = torch_dtype()
    lines = {
        "plain read of memory, GB/s": plain_read(),
        "one token's experts, w4, GB/s": decode_experts("w4"),
        "one token's experts, w2, GB/s": decode_experts("w2"),
        "one token's experts, w2t, GB/s": decode_experts("w2t"),
        "dense layer, one token, w8, GB/s": decode_linear("w8"),
        "dense layer, one token, w4, GB/s": decode_linear("w4"),
        f"{str(dtype).removeprefix('torch.')} product in torch, G mac/s": large_product(dtype),
        "512 tokens' text experts, w4, G mac/s": prefill_experts("w4", TEXT_INNER),
        "512 tokens' text experts, w2, G mac/s": prefill_experts("w2", TEXT_INNER),
        "512 tokens' text experts, w2t, G mac/s": prefill_experts("w2t", TEXT_INNER),
        "512 tokens' vision experts, w4, G mac/s": prefill_experts("w4", VISION_INNER),
        "dense layer, 512 tokens, w4, G mac/s": many_tokens_linear("w4", PREFILL_TOKENS, 12288, HIDDEN),
        "dense layer, 512 tokens, w8, G mac/s": many_tokens_linear("w8", PREFILL_TOKENS, 12288, HIDDEN),
    }
    for rows, columns in ((3, 1), (1, 1), (4, 1), (1, 4)):
        sizes = rows * TOWER_WIDTH, columns * TOWER_WIDTH
        lines[f"tower, {sizes[1]} to {sizes[0]}, {TOWER_PATCHES} patches, w8, G mac/s"] = many_tokens_linear(
            "w8", TOWER_PATCHES, *sizes
        )
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for round_index in range(arguments.rounds + 1):
        for name, (call, _) in lines.items():
            # In decode one call follows the other, before the threads fall asleep.
            for call_index in range(CALLS_IN_A_ROW if "one token" in name else 2):
                start = time.perf_counter()
                call()
                if round_index and call_index:  # the first ones warm up
                    seconds[name].append(time.perf_counter() - start)
    results = {name: work / statistics.median(seconds[name]) / 1e9 for name, (_, work) in lines.items()}
    print("| | |\n|---|---:|")
    for name, value in results.items():
        print(f"| {name} | {value:.1f} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
