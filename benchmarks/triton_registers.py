"""Compiles every Triton kernel for each generation of GPUs, on any machine, and prints what it needs there:
registers of a thread, KiB of shared memory of a program; the JSON object has spills and wide loads, too.

    python benchmarks/triton_registers.py                        # a table; the last line is one JSON object
    python benchmarks/triton_registers.py --arch 75 86 --formats w4

Kernels, sizes and constants are those of real calls at the shapes of ERNIE-4.5-VL-28B-A3B: the calls are made
on tensors without memory, and what they would start is compiled instead. Needs the triton wheel, no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.runtime.jit import JITFunction

from ernie_local.kernels.arguments import ExpertsCall, LayerStorage, NewToken
from ernie_local.kernels.triton.attention import attend_by_triton
from ernie_local.kernels.triton.chunk_attention import attend_chunk_by_triton
from ernie_local.kernels.triton.device import TritonDevice
from ernie_local.kernels.triton.experts import add_experts
from ernie_local.kernels.triton.linear import look_up_rows, multiply_tokens
from ernie_local.packing import PageLayout, find_format

HIDDEN, TEXT_INNER, SHARED_INNER, HEADS, KV_HEADS, HEAD_DIM, TOP_K = 2560, 1536, 3072, 20, 4, 128, 6
QKV_ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM
NUM_EXPERTS, UNITS, UNIT_BYTES, PROMPT_TOKENS, CAPACITY = 64, 1 << 20, 4096, 512, 8192
ARCHITECTURES = (75, 80, 86, 89, 90, 120)  # Turing, Ampere, Ada, Hopper, Blackwell


@dataclass(frozen=True)
class Need:
    """What one kernel, compiled for one GPU, takes of it."""

    kernel: str
    what: str  # format or dtype
    arch: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    wide_loads: int  # instructions that load 128 bits of memory for each thread
    tensor_products: int


class NoGpu:
    """What Triton asks of a driver before it starts a kernel: for what to compile."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def linear(tokens: int, format_name: str, gpu: TritonDevice) -> None:
    low_bit = find_format(format_name)
    packed = empty(low_bit.matrix_bytes(QKV_ROWS, HIDDEN), dtype=torch.uint8)
    multiply_tokens(empty(tokens, HIDDEN), packed, low_bit, QKV_ROWS, gpu)


def rows(format_name: str) -> None:
    low_bit = find_format(format_name)
    packed = empty(low_bit.matrix_bytes(QKV_ROWS, HIDDEN), dtype=torch.uint8)
    look_up_rows(empty(PROMPT_TOKENS, dtype=torch.int64), packed, low_bit, HIDDEN)


def experts(tokens: int, format_name: str, gpu: TritonDevice) -> None:
    low_bit = find_format(format_name)
    layout = PageLayout(low_bit, low_bit, HIDDEN, TEXT_INNER)
    shared = PageLayout(find_format("w8"), find_format("w8"), HIDDEN, SHARED_INNER)
    call = ExpertsCall(
        empty(tokens, HIDDEN),
        empty(UNITS, UNIT_BYTES, dtype=torch.uint8),
        empty(tokens, TOP_K, dtype=torch.int64),
        empty(tokens, TOP_K),
        empty(1, shared.page_bytes, dtype=torch.uint8),
        empty(NUM_EXPERTS, dtype=torch.int64),
    )
    add_experts(empty(tokens, HIDDEN), call, [layout], shared, gpu)


def empty_cache(dtype: torch.dtype) -> LayerStorage:
    states = [empty(KV_HEADS, CAPACITY, HEAD_DIM, dtype=dtype) for _ in range(2)]
    has_scales = dtype == torch.int8
    return LayerStorage(*states, *(empty(KV_HEADS, CAPACITY, 1) if has_scales else None for _ in range(2)))


def attention(cache_dtype: torch.dtype, gpu: TritonDevice) -> None:
    new = [empty(heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    angles = [empty(HEAD_DIM // 2) for _ in range(2)]
    attend_by_triton(NewToken(*new, *angles), empty_cache(cache_dtype), empty(1, dtype=torch.int64), gpu)


def chunk_attention(cache_dtype: torch.dtype, gpu: TritonDevice) -> None:
    queries = empty(PROMPT_TOKENS, HEADS, HEAD_DIM, dtype=torch.bfloat16)
    attend_chunk_by_triton(queries, empty_cache(cache_dtype), CAPACITY - PROMPT_TOKENS, gpu)


def compile_calls(call: Callable[[], None], what: str) -> Iterator[tuple[str, str, Any]]:
    """Name, description and compiled form of each kernel that `call` would start."""
    compiled: list[tuple[str, str, Any]] = []
    run = JITFunction.run

    def only_compile(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        is_shared = "places" in named and named["places"] is None
        form = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((kernel.__name__, what + (", shared w8" if is_shared else ""), form))

    JITFunction.run = only_compile
    try:
        call()
    finally:
        JITFunction.run = run
    yield from compiled


def all_kernels(formats: Sequence[str], arch: int, is_decode: bool) -> list[tuple[str, str, Any]]:
    """Every kernel, once for each format or dtype that makes it another one."""
    triton.runtime.driver.set_active(NoGpu(arch))
    gpu = TritonDevice.of_capability(divmod(arch, 10))
    calls = []
    for name in formats:
        for tokens in (1,) if is_decode else (1, PROMPT_TOKENS):
            calls += [
                (partial(experts, tokens, name, gpu), name),
                (partial(linear, tokens, name, gpu), name),
            ]
        calls.append((partial(rows, name), name))
    calls += [(partial(attention, dtype, gpu), str(dtype)[6:]) for dtype in (torch.float16, torch.int8)]
    if not is_decode:
        dtypes = (torch.float16, torch.bfloat16, torch.int8, torch.float32)
        calls += [(partial(chunk_attention, dtype, gpu), str(dtype)[6:]) for dtype in dtypes]
    if gpu.uses_tensor_cores and not is_decode:
        brain = TritonDevice.of_capability(divmod(arch, 10), torch.bfloat16)
        calls.append((partial(experts, PROMPT_TOKENS, "w4", brain), "w4, bfloat16"))
        calls.append((partial(attention, torch.bfloat16, brain), "bfloat16"))
    found: dict[str, tuple[str, str, Any]] = {}
    for call, what in calls:
        for name, description, form in compile_calls(call, what):
            found.setdefault(form.hash, (name, description, form))
    return list(found.values())


def measure(name: str, what: str, compiled: Any, arch: int) -> Need:
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(compiled.asm["ptx"])
        target = f"--gpu-name={sm_arch_from_capability(arch)}"
        said = tool(get_ptxas(arch).path, "-v", target, str(source), "-o", str(binary)).stderr
        instructions = tool(triton.knobs.nvidia.nvdisasm.path, str(binary)).stdout
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None, said
    return Need(
        kernel=name,
        what=what,
        arch=arch,
        registers=int(registers[1]),
        shared_bytes=compiled.metadata.shared,
        spill_bytes=sum(int(number) for number in re.findall(r"(\d+) bytes spill", said)),
        wide_loads=len(re.findall(r"\b(?:LDG|LDGSTS)\.E\S*\.128\b", instructions)),
        tensor_products=len(re.findall(r"\bHG?MMA\.", instructions)),
    )


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    """One of the tools that come with the triton wheel."""
    return subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--formats", nargs="+", default=["w4", "w2", "w8"])
    parser.add_argument("--decode", action="store_true", help="only what a decoded token starts")
    arguments = parser.parse_args()
    needs = [
        measure(name, what, compiled, arch)
        for arch in arguments.arch
        for name, what, compiled in all_kernels(arguments.formats, arch, arguments.decode)
    ]
    print("| kernel | | " + " | ".join(f"sm_{arch}" for arch in arguments.arch) + " |")
    print("|---|---|" + "---:|" * len(arguments.arch))
    for kernel, what in dict.fromkeys((need.kernel, need.what) for need in needs):
        cells = []
        for arch in arguments.arch:
            # Where one call starts a kernel for several sizes, the largest counts.
            same = [need for need in needs if (need.kernel, need.what, need.arch) == (kernel, what, arch)]
            registers = max((need.registers for need in same), default=0)
            shared = max((need.shared_bytes for need in same), default=0)
            cells.append(f"{registers}, {shared / 1024:.1f}" if same else "")
        print(f"| `{kernel}` | {what} | " + " | ".join(cells) + " |")
    print(json.dumps({"triton": triton.__version__, "needs": [asdict(need) for need in needs]}))


if __name__ == "__main__":
    main()
