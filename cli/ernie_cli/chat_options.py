"""The options of `ernie-local chat` as one value, and what they mean for the runtime.

Owns their units and the meaning of "auto". `--help` needs this module, so it imports nothing of the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ernie_local.experts.options import PagingOptions

Think = Literal["on", "off", "auto"]
DType = Literal["auto", "float32", "bfloat16"]
KVDType = Literal["auto", "float32", "float16", "bfloat16", "int8"]
Misses = Literal["auto", "fetch", "compute", "split"]
GpuKernels = Literal["auto", "triton", "torch"]
CudaGraphs = Literal["auto", "on", "off"]
GpuKernelsOption = Annotated[
    GpuKernels,
    typer.Option(
        help="What computes packed weights on a GPU: Triton's kernels, or plain PyTorch, which is slower; "
        "auto is Triton where it runs, and a warning where it does not."
    ),
]

# float32 doubles what a 16-bit checkpoint takes; past this, most machines would rather have the memory.
_LARGEST_FLOAT32_CHECKPOINT = 4 << 30


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What was said on the command line; None means that the model or the runtime decides."""

    model: str = "nano"
    prompt: str | None = None
    images: tuple[str, ...] = ()
    interactive: bool = False
    system: str | None = None
    max_tokens: str | None = None
    context_size: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    think: Think = "auto"
    think_budget: str | None = None
    hide_thinking: bool = False
    device: str = "cpu"
    dtype: DType = "auto"
    kv_dtype: KVDType = "auto"
    threads: int | None = None
    ram: str | None = None
    reserve: str | None = None
    vram: str | None = None
    misses: Misses = "auto"
    gpu_kernels: GpuKernels = "auto"
    cuda_graphs: CudaGraphs = "auto"
    small_below: float | None = None
    as_json: bool = False
    stream: bool = True
    stats: bool = False
    save: Path | None = None
    load: Path | None = None
    trace: Path | None = None

    def thinking(self) -> bool | None:
        """Whether to think; None is what the model was made for."""
        return {"on": True, "off": False, "auto": None}[self.think]

    def max_tokens_count(self) -> int | None:
        """Tokens that an answer with its thoughts may have."""
        return _count(self.max_tokens, "--max-tokens")

    def context_tokens(self) -> int | None:
        """Tokens that the whole chat may have."""
        return _count(self.context_size, "--ctx-size")

    def think_budget_count(self) -> int | None:
        """Tokens that the thoughts may have before they are closed; 0 closes them at once."""
        return 0 if self.think_budget == "0" else _count(self.think_budget, "--think-budget")

    def kv_dtype_name(self) -> str | None:
        """The number type of the KV cache for the runtime."""
        return None if self.kv_dtype == "auto" else self.kv_dtype

    def paging(self, best_rule: str | None) -> PagingOptions:
        """How experts are paged, where they are. best_rule: for misses, as measured; None if it was not."""
        from ernie_local.experts.options import FETCH, MISS_RULES, PagingOptions

        name = best_rule if self.misses == "auto" else self.misses
        rule = FETCH if name is None else MISS_RULES[name]
        return PagingOptions(rule, self.small_below)

    def dtype_name(self, checkpoint_bytes: int, is_packed: bool = False) -> str:
        """The number type to compute in; `checkpoint_bytes` decides where that was left open.

        is_packed: weights stay as they are, and only what is computed from them takes memory.
        """
        if self.dtype != "auto":
            return self.dtype
        if self.device == "cpu" and is_packed:
            return "float32"
        if self.device == "cpu" and checkpoint_bytes <= _LARGEST_FLOAT32_CHECKPOINT:
            return "float32"
        return "bfloat16"


def _count(text: str | None, option: str) -> int | None:
    from ernie_local.sizes import parse_count

    return None if text is None else parse_count(text, option)
