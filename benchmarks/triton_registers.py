"""Compiles every Triton kernel for each generation of cards, on any machine, and prints what it needs there.

    python benchmarks/triton_registers.py                        # a table; the last line is one JSON object
    python benchmarks/triton_registers.py --arch 75 86 --only gate_and_up down

Kernels, sizes and constants are those of real calls at the shapes of ERNIE-4.5-VL-28B-A3B: the calls are made
on tensors without memory, and what they would start is compiled instead. Needs the triton wheel, no card.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ernie_local.kernels.triton.attention import decode_attention
from ernie_local.kernels.triton.card import Card
from ernie_local.kernels.triton.experts import add_packed_experts
from ernie_local.kernels.triton.linear import packed_linear
from ernie_local.packing import PageLayout, find_format

HIDDEN, TEXT_INNER, SHARED_INNER, HEADS, KV_HEADS, HEAD_DIM, TOP_K = 2560, 1536, 3072, 20, 4, 128, 6
QKV_ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM
NUM_EXPERTS, UNITS, UNIT_BYTES, PROMPT_TOKENS, CAPACITY = 64, 1 << 20, 4096, 512, 8192
ARCHITECTURES = (75, 80, 86, 89, 90, 120)  # Turing, Ampere, Ada, Hopper, Blackwell
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.uint8: "*u8", torch.int8: "*i8", torch.int64: "*i64",
}  # fmt: skip


@dataclass(frozen=True)
class Need:
    """What one kernel, compiled for one card, takes of it."""

    kernel: str
    what: str  # format or dtype
    arch: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    wide_loads: int  # instructions that load 128 bits of memory for each thread
    tensor_products: int


@dataclass(frozen=True)
class Launch:
    """A start of a kernel that was asked for."""

    kernel: Any
    what: str
    arguments: dict[str, Any]


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def linear(tokens: int, format_name: str, card: Card) -> None:
    low_bit = find_format(format_name)
    packed = empty(low_bit.matrix_bytes(QKV_ROWS, HIDDEN), dtype=torch.uint8)
    packed_linear(empty(tokens, HIDDEN), packed, low_bit, QKV_ROWS, card)


def experts(tokens: int, format_name: str, card: Card) -> None:
    low_bit = find_format(format_name)
    layout = PageLayout(low_bit, low_bit, HIDDEN, TEXT_INNER)
    add_packed_experts(
        empty(tokens, HIDDEN),
        empty(tokens, HIDDEN),
        empty(UNITS, UNIT_BYTES, dtype=torch.uint8),
        empty(tokens, TOP_K, dtype=torch.int64),
        empty(tokens, TOP_K),
        None,
        empty(NUM_EXPERTS, dtype=torch.int64),
        [layout],
        None,
        card,
    )


def attention(cache_dtype: torch.dtype, card: Card) -> None:
    cache = [empty(KV_HEADS, CAPACITY, HEAD_DIM, dtype=cache_dtype) for _ in range(2)]
    has_scales = cache_dtype == torch.int8
    scales = [empty(KV_HEADS, CAPACITY, 1) if has_scales else None for _ in range(2)]
    new = [empty(heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    angles = [empty(HEAD_DIM // 2) for _ in range(2)]
    decode_attention(*new, *angles, *cache, *scales, empty(1, dtype=torch.int64), card)


def record(call: Callable[[], None], what: str) -> list[Launch]:
    """What `call` would start."""
    launches: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(kernel, what, dict(zip(kernel.arg_names, args, strict=False)) | kwargs))

    run = JITFunction.run
    JITFunction.run = note
    try:
        call()
    finally:
        JITFunction.run = run
    return launches


def all_launches(formats: Sequence[str], arch: int) -> list[Launch]:
    """Of every kernel, once for each format or dtype that makes it another one."""
    card = Card.of_capability(divmod(arch, 10))
    launches: list[Launch] = []
    for name in formats:
        for tokens in (1, PROMPT_TOKENS):
            launches += record(partial(experts, tokens, name, card), name)
            launches += record(partial(linear, tokens, name, card), name)
    launches += record(partial(attention, torch.float16, card), "float16")
    launches += record(partial(attention, torch.int8, card), "int8")
    if card.uses_tensor_cores:
        brain = Card.of_capability(divmod(arch, 10), torch.bfloat16)
        launches += record(partial(experts, PROMPT_TOKENS, "w4", brain), "w4, bfloat16")
        launches += record(partial(attention, torch.bfloat16, brain), "bfloat16")
    unique: dict[tuple[str, str], Launch] = {}
    for launch in launches:
        name = launch.kernel.__name__
        same = "any" if name in ("add_choices", "join_stretches") else launch.what
        unique.setdefault((name, same), launch)
    return list(unique.values())


def compile_for(launch: Launch, arch: int) -> Any:
    """The kernel as Triton compiles it for a card of this compute capability."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments.get(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
    names = launch.kernel.arg_names
    options = {name: value for name, value in launch.arguments.items() if name not in names}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure(launch: Launch, arch: int) -> Need:
    compiled = compile_for(launch, arch)
    ptx = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        target = f"--gpu-name={sm_arch_from_capability(arch)}"
        said = tool(get_ptxas(arch).path, "-v", target, str(source), "-o", str(binary)).stderr
        instructions = tool(triton.knobs.nvidia.nvdisasm.path, str(binary)).stdout
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None, said
    return Need(
        kernel=launch.kernel.__name__,
        what=launch.what,
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
    parser.add_argument("--only", nargs="+", help="kernels; without it all")
    arguments = parser.parse_args()
    needs = [
        measure(launch, arch)
        for arch in arguments.arch
        for launch in all_launches(arguments.formats, arch)
        if not arguments.only or launch.kernel.__name__ in arguments.only
    ]
    print(
        "| kernel | | registers, shared KiB on " + ", ".join(f"sm_{arch}" for arch in arguments.arch) + " |"
    )
    print("|---|---|---|")
    rows: dict[tuple[str, str], list[Need]] = {}
    for need in needs:
        rows.setdefault((need.kernel, need.what), []).append(need)
    for (kernel, what), found in rows.items():
        shown = ", ".join(
            f"{need.registers}/{need.shared_bytes / 1024:.1f}" + ("!" if need.spill_bytes else "")
            for need in found
        )
        print(f"| `{kernel}` | {what} | {shown} |")
    print(json.dumps({"triton": triton.__version__, "needs": [asdict(need) for need in needs]}))


if __name__ == "__main__":
    main()
