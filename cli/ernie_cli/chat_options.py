"""Holds the options of `ernie-local chat` as one value. `--help` needs this, so it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ernie_local.loading import LoadOptions
    from ernie_local.sampling import SamplingOptions

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
    look_ahead: bool = False
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
        return _count(self.max_tokens, "max_tokens")

    def context_tokens(self) -> int | None:
        """Tokens that the whole chat may have."""
        return _count(self.context_size, "context_size")

    def think_budget_count(self) -> int | None:
        """Tokens that the thoughts may have before they are closed; 0 closes them at once."""
        return 0 if self.think_budget == "0" else _count(self.think_budget, "thinking_budget")

    def load_options(self) -> LoadOptions:
        """How the model is loaded: the options that `load` has too, as far as they were given."""
        from ernie_local.loading import LoadOptions

        given = {field.name: getattr(self, field.name, None) for field in fields(LoadOptions)}
        given["context_size"] = self.context_tokens()
        return LoadOptions(**{name: value for name, value in given.items() if value is not None})

    def sampling(self, of_model: SamplingOptions) -> SamplingOptions:
        """How tokens are drawn: the options that were given over the model's own."""
        given = {field.name: getattr(self, field.name) for field in fields(of_model)}
        return replace(of_model, **{name: value for name, value in given.items() if value is not None})


def _count(text: str | None, name: str) -> int | None:
    from ernie_local.sizes import parse_count

    return None if text is None else parse_count(text, name)
