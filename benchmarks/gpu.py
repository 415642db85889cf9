"""On an NVIDIA GPU: every Triton kernel against float32, and what of its memory's speed decode reaches.

    python benchmarks/gpu.py                # three tables; the last line is one JSON object
    python benchmarks/gpu.py --model DIR --vram 4GiB --vram 8GiB   # and a checkpoint at these budgets

DIR is one of synthesize.py's, or any other. Graphs of decode are tried off and on.

Decode figures are bytes of packed weights (or of cache) over seconds, medians on weights that no cache holds,
beside a copy on the GPU in the same rounds, which counts what it reads and what it writes. A prompt's
attention is told in multiply-adds, those of tokens that are not seen left out. Without a GPU it says so and
leaves with 3.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from gpu_model import Run, runs, table

from ernie_local.errors import DoesNotFit, ErnieLocalError
from ernie_local.kernels import reference
from ernie_local.kernels.arguments import ExpertsCall, LayerStorage, NewToken, PackedMatrix
from ernie_local.kernels.attention import attend_chunk, decode_attention
from ernie_local.kernels.bounded_attention import attend_in_pieces
from ernie_local.kernels.experts import packed_experts
from ernie_local.kernels.gpu import require_triton
from ernie_local.kernels.linear import packed_linear
from ernie_local.machine.compute import gpu_rates, measure_gpu
from ernie_local.machine.random_model import RandomWeights
from ernie_local.packing import LowBitFormat, PageLayout, find_format

HIDDEN, TEXT_INNER, VISION_INNER, TOP_K, HEADS, KV_HEADS, HEAD_DIM = 2560, 1536, 512, 6, 20, 4, 128
QKV_ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM
FORMATS = ("w4", "w2", "w8")
MANY = 200
CONTEXT, PROMPT = 8192, 512
CHUNK_DTYPES = (torch.bfloat16, torch.float16, torch.int8)
COPY_BYTES = 1 << 28
# What tokens cost by being rounded to 11 digits of binary, through three products; few are not rounded.
LARGEST_ERROR_MANY, LARGEST_ERROR_ONE = 2.0**-9, 1e-4
LARGEST_ERROR_BFLOAT16 = 2.0**-6  # it has 8 digits
RANDOM = RandomWeights()
Arguments = TypeVar("Arguments", NewToken, LayerStorage)


@dataclass(frozen=True)
class Check:
    """A kernel's largest relative difference and the most that it may be."""

    name: str
    error: float
    limit: float


@dataclass(frozen=True)
class Reading:
    """A call whose work is known; `calls` go through different weights in turn."""

    name: str
    calls: list[Callable[[], object]]
    work: int  # of one call: bytes, or for prompts multiply-adds


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.cpu().float() - expected).norm() / expected.norm())


def random_matrix(low_bit: LowBitFormat, rows: int, columns: int) -> torch.Tensor:
    return torch.cat(list(RANDOM.matrix(low_bit, rows, columns)))


def check_linear(device: torch.device) -> list[Check]:
    found = []
    for name in FORMATS:
        low_bit = find_format(name)
        packed = random_matrix(low_bit, QKV_ROWS, HIDDEN)
        on_gpu = packed.to(device)
        for num_tokens, limit in ((1, LARGEST_ERROR_ONE), (MANY, LARGEST_ERROR_MANY)):
            tokens = torch.randn(num_tokens, HIDDEN)
            actual = packed_linear(tokens.to(device), PackedMatrix(on_gpu, name, QKV_ROWS))
            expected = reference.plain_linear(tokens, PackedMatrix(packed, name, QKV_ROWS))
            found.append(
                Check(f"linear, {name}, tokens: {num_tokens}", relative_error(actual, expected), limit)
            )
    return found


def check_experts(device: torch.device) -> list[Check]:
    found = []
    for name, inner in (("w4", TEXT_INNER), ("w2", TEXT_INNER), ("w8", VISION_INNER)):
        low_bit = find_format(name)
        slots = torch.stack([RANDOM.page(PageLayout(low_bit, low_bit, HIDDEN, inner)) for _ in range(8)])
        shared = RANDOM.page(PageLayout(find_format("w8"), find_format("w8"), HIDDEN, 2 * inner))[None]
        for num_tokens, limit in ((1, LARGEST_ERROR_ONE), (MANY, LARGEST_ERROR_MANY)):
            hidden, weights = torch.randn(num_tokens, HIDDEN), torch.rand(num_tokens, TOP_K)
            ids = torch.rand(num_tokens, 8).topk(TOP_K).indices
            arguments = (hidden, slots, ids, weights, shared)
            tokens = hidden.to(device), slots.to(device), ids.to(device), weights.to(device)
            actual = packed_experts(ExpertsCall(*tokens, shared.to(device)))
            error = relative_error(actual, reference.plain_experts(ExpertsCall(*arguments)))
            found.append(Check(f"experts, {name}, inner: {inner}, tokens: {num_tokens}", error, limit))
    return found


def on_device(arguments: Arguments, device: torch.device) -> Arguments:
    """An operator's tensors, copied; those that it was not given stay None."""
    parts: list[Any] = [part if part is None else part.to(device) for part in list[Any](arguments)]
    return type(arguments)(*parts)


def check_attention(device: torch.device) -> list[Check]:
    found = []
    for dtype in (torch.float16, torch.int8):
        new, cache = attention_arguments(dtype, CONTEXT)
        length = CONTEXT - 100
        actual = decode_attention(on_device(new, device), on_device(cache, device), length)
        expected = reference.plain_attention(new, cache, length)
        kind = str(dtype).removeprefix("torch.")
        found.append(Check(f"attention, {kind}", relative_error(actual, expected), LARGEST_ERROR_MANY))
    return found


def check_chunks(device: torch.device) -> list[Check]:
    """MANY tokens behind some, by the kernel against plain torch on the processor."""
    found = []
    for dtype in CHUNK_DTYPES:
        cache = attention_arguments(dtype, 2 * MANY)[1]
        queries = torch.randn(MANY, HEADS, HEAD_DIM)
        actual = attend_chunk(queries.to(device), on_device(cache, device), MANY)
        kind = str(dtype).removeprefix("torch.")
        error = relative_error(actual, attend_in_pieces(queries, cache, MANY))
        limit = LARGEST_ERROR_BFLOAT16 if dtype == torch.bfloat16 else LARGEST_ERROR_MANY
        found.append(Check(f"attention, {kind}, tokens: {MANY}", error, limit))
    return found


def attention_arguments(dtype: torch.dtype, capacity: int) -> tuple[NewToken, LayerStorage]:
    angles = torch.rand(HEAD_DIM // 2) * 6
    queries, keys, values = (torch.randn(count, HEAD_DIM) for count in (HEADS, KV_HEADS, KV_HEADS))
    new = NewToken(queries, keys, values, angles.cos(), angles.sin())
    states = torch.randn(2, KV_HEADS, capacity, HEAD_DIM)
    if dtype != torch.int8:
        return new, LayerStorage(states[0].to(dtype), states[1].to(dtype), None, None)
    scales = states.abs().amax(-1, keepdim=True) / 127
    codes = (states / scales).round().to(torch.int8)
    return new, LayerStorage(codes[0], codes[1], scales[0], scales[1])


def expert_readings(device: torch.device) -> list[Reading]:
    from ernie_local.kernels.triton.experts import add_experts

    readings = []
    for name in FORMATS:
        low_bit = find_format(name)
        layout = PageLayout(low_bit, low_bit, HIDDEN, TEXT_INNER)
        # Six of 64 for each call, so that each finds pages that the last ones did not touch.
        slots = RANDOM.page(layout)[None].repeat(64, 1).to(device)
        hidden, weights = torch.randn(1, HIDDEN, device=device), torch.rand(1, TOP_K, device=device)
        output, gpu = torch.zeros(1, HIDDEN, device=device), require_triton(device)
        calls: list[Callable[[], object]] = []
        for start in range(0, 60, TOP_K):
            ids = torch.arange(start, start + TOP_K, device=device)[None]
            call = ExpertsCall(hidden, slots, ids, weights)
            calls.append(partial(add_experts, output, call, [layout], None, gpu))
        num_bytes = TOP_K * (layout.gate_up_bytes + layout.down_bytes)
        readings.append(Reading(f"one token's experts, {name}", calls, num_bytes))
    return readings


def linear_readings(device: torch.device) -> list[Reading]:
    from ernie_local.kernels.triton.linear import multiply_tokens

    readings = []
    for name, rows in (("w8", QKV_ROWS), ("w8", 12288), ("w4", 12288)):
        low_bit, tokens, gpu = (
            find_format(name),
            torch.randn(1, HIDDEN, device=device),
            require_triton(device),
        )
        num_bytes = low_bit.matrix_bytes(rows, HIDDEN)
        packed = random_matrix(low_bit, rows, HIDDEN).to(device)
        copies = [packed.clone() for _ in range(max(2, COPY_BYTES // num_bytes))]
        calls: list[Callable[[], object]] = [
            partial(multiply_tokens, tokens, copy, low_bit, rows, gpu) for copy in copies
        ]
        readings.append(Reading(f"dense {rows} x {HIDDEN}, one token, {name}", calls, num_bytes))
    return readings


def attention_readings(device: torch.device) -> list[Reading]:
    from ernie_local.kernels.triton.attention import attend_by_triton

    readings = []
    for dtype in (torch.float16, torch.int8):
        new, _ = attention_arguments(dtype, 1)
        token = on_device(new, device)
        length = torch.full((1,), CONTEXT - 1, dtype=torch.int64, device=device)
        caches = [on_device(attention_arguments(dtype, CONTEXT)[1], device) for _ in range(16)]
        calls: list[Callable[[], object]] = [
            partial(attend_by_triton, token, cache, length, require_triton(device)) for cache in caches
        ]
        num_bytes = sum(part.nbytes for part in caches[0] if part is not None)
        kind = str(dtype).removeprefix("torch.")
        readings.append(Reading(f"attention over {CONTEXT} tokens, {kind}", calls, num_bytes))
    return readings


def chunk_readings(device: torch.device) -> list[Reading]:
    """The last PROMPT tokens of CONTEXT, by the kernel and by plain torch."""
    length = CONTEXT - PROMPT
    seen = sum(range(length + 1, CONTEXT + 1))
    queries = torch.randn(PROMPT, HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16)
    readings = []
    for dtype in CHUNK_DTYPES:
        cache = on_device(attention_arguments(dtype, CONTEXT)[1], device)
        kind = str(dtype).removeprefix("torch.")
        for way, attend in (("kernel", attend_chunk), ("plain torch", attend_in_pieces)):
            calls: list[Callable[[], object]] = [partial(attend, queries, cache, length)]
            name = f"attention of {PROMPT} tokens to {CONTEXT}, {kind}, {way}"
            readings.append(Reading(name, calls, 2 * HEADS * HEAD_DIM * seen))
    return readings


def copy_reading(device: torch.device) -> Reading:
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Reading("copy on the GPU", [lambda: target.copy_(source)], 2 * COPY_BYTES)


def measure(readings: list[Reading], rounds: int) -> dict[str, float]:
    """Work of each in a second, in units of 1e9: medians of interleaved rounds.

    A graph replays the calls: Python is not timed.
    """
    graphs = []
    for reading in readings:
        for call in reading.calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in reading.calls:
                call()
        graphs.append(graph)
    seconds: dict[str, list[float]] = {reading.name: [] for reading in readings}
    for _ in range(rounds):
        for reading, graph in zip(readings, graphs, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            seconds[reading.name].append(start.elapsed_time(end) / 1e3 / len(reading.calls))
    return {
        reading.name: reading.work / statistics.median(seconds[reading.name]) / 1e9 for reading in readings
    }


def find_device() -> torch.device:
    """DoesNotFit where there is no GPU that kernels can run on."""
    if not torch.cuda.is_available():
        raise DoesNotFit(
            "benchmarks/gpu.py measures an NVIDIA GPU, this machine has 0 that PyTorch can use",
            f"PyTorch {torch.__version__} sees no CUDA device",
            "run it where `nvidia-smi` works, with a PyTorch built for CUDA; without a GPU: "
            "python benchmarks/triton_registers.py",
        )
    device = torch.device("cuda", torch.cuda.current_device())
    require_triton(device)
    return device


def run(rounds: int, model: Path | None, budgets: Sequence[str]) -> int:
    device = find_device()
    torch.manual_seed(0)
    checks = [
        *check_linear(device),
        *check_experts(device),
        *check_attention(device),
        *check_chunks(device),
    ]
    print("| against float32 | relative error | limit |\n|---|---:|---:|")
    for check in checks:
        verdict = "" if check.error <= check.limit else " **wrong**"
        print(f"| {check.name} | {check.error:.1e}{verdict} | {check.limit:.1e} |")
    copy = copy_reading(device)
    readings = [copy, *expert_readings(device), *linear_readings(device), *attention_readings(device)]
    speeds = measure(readings, rounds)
    print("\n| decode | GB/s | of the copy |\n|---|---:|---:|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:.0f} | {100 * speed / speeds[copy.name]:.0f} % |")
    products = measure(chunk_readings(device), rounds)
    print("\n| prompts | G multiply-adds a second |\n|---|---:|")
    for name, speed in products.items():
        print(f"| {name} | {speed:.0f} |")
    measured: list[Run] = []
    if model is not None:
        copies = measure_gpu(device)
        rates = gpu_rates(copies)
        measured = list(runs(model, device, budgets, rates))
        print("\n" + "\n".join(table(measured)))
    properties = torch.cuda.get_device_properties(device)
    told = {
        "gpu": properties.name,
        "capability": [properties.major, properties.minor],
        "torch": torch.__version__,
        "errors": {check.name: check.error for check in checks},
        "gigabytes_a_second": speeds,
        "billion_products_a_second": products,
        "model": [dataclasses.asdict(one) | {"share_of_limit": one.share} for one in measured],
    }
    print(json.dumps(told))
    return 0 if all(check.error <= check.limit for check in checks) else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", type=Path, help="a checkpoint to run at each --vram")
    parser.add_argument("--vram", action="append", help="of the GPU, such as 6GiB; by default 4, 8 and 16")
    arguments = parser.parse_args()
    try:
        sys.exit(run(arguments.rounds, arguments.model, arguments.vram or ("4GiB", "8GiB", "16GiB")))
    except ErnieLocalError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
