"""A checkpoint on a GPU at several budgets: prefill, decode, what was found where, the share of the limit.

The part of gpu.py that runs a whole model: `python benchmarks/gpu.py --model DIR --vram 4GiB`. The limit is
bytes over the rates of copies in the same run, the host's work counted as nothing. On the processor a memory
stands for the GPU's, which only a test wants.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from full_size import random_ids

import ernie_local
from ernie_local.engine import Engine
from ernie_local.experts.options import PagingStats
from ernie_local.loading import LoadedModel
from ernie_local.planner.model_size import read_model
from ernie_local.planner.rates import GpuRates

PROMPT_TOKENS, WARM_TOKENS = 512, 32
KV_DTYPE = "float16"  # which every GPU attends to by the kernel


@dataclass(frozen=True)
class Run:
    """Tokens a second; hit_rate: of a token's experts on the GPU; link_bytes: copied for each token."""

    vram: str
    graphs: str
    prefill: float
    decode: float
    limit: float
    hit_rate: float
    link_bytes: float
    gpu_gb_s: float

    @property
    def share(self) -> float:
        """Of the limit formula that decode reaches."""
        return self.decode / self.limit


def runs(
    directory: Path,
    device: torch.device,
    budgets: Sequence[str],
    rates: GpuRates,
    num_decoded: int = 96,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Iterator[Run]:
    """Each budget without graphs and, on a GPU, with them."""
    for vram in budgets:
        for graphs in ("off", "on") if device.type == "cuda" else ("auto",):
            context_size = prompt_tokens + WARM_TOKENS + num_decoded
            model = ernie_local.load(
                directory,
                device=device,
                dtype="bfloat16",
                vram=vram,
                kv_dtype=KV_DTYPE,
                context_size=context_size,
                cuda_graphs=graphs,
            )
            yield measure(model, vram, graphs, rates, num_decoded, prompt_tokens)
            del model


def measure(
    model: LoadedModel, vram: str, graphs: str, rates: GpuRates, num_decoded: int, prompt_tokens: int
) -> Run:
    engine = model.engine()
    ids = random_ids(engine.context_size, model.config.text.vocab_size)
    start = engine.mark()
    seconds = []
    for _ in range(2):  # the first compiles kernels
        engine.rewind(start)
        seconds.append(timed(lambda: engine.prefill(ids[:prompt_tokens])))
    behind = ids[prompt_tokens:]
    for token in behind[:WARM_TOKENS]:
        engine.decode(token)
    before = model.paging
    decoded = [timed(partial(decode, engine, token)) for token in behind[WARM_TOKENS:]]
    hit_rate, link_bytes = found(before, model.paging, num_decoded)
    decode_seconds = statistics.median(decoded)
    work = read_model(model.directory).decode_work("bfloat16")
    routed = work.moe_layers * work.experts_per_token * work.expert_bytes
    on_gpu = sum(work.always_bytes.values()) + hit_rate * routed
    limit = 1 / (on_gpu / rates.memory_bytes_per_second + link_bytes / rates.link_bytes_per_second)
    return Run(
        vram,
        graphs,
        prefill=prompt_tokens / seconds[-1],
        decode=1 / decode_seconds,
        limit=limit,
        hit_rate=hit_rate,
        link_bytes=link_bytes,
        gpu_gb_s=on_gpu / decode_seconds / 1e9,
    )


def decode(engine: Engine, token: int) -> float:
    """One of the logits: to have it is to have waited for the GPU."""
    return float(engine.decode(token)[0])


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def found(before: PagingStats | None, after: PagingStats | None, num_decoded: int) -> tuple[float, float]:
    """The share of experts that were on the GPU, and bytes that came over the link for each token."""
    if before is None or after is None:
        return 1.0, 0.0
    gpu = after.since(before).gpu
    assert gpu is not None
    hit_rate = gpu.banks["text"].decode_hit_rate
    assert hit_rate is not None
    return hit_rate, gpu.decode_bytes_read / num_decoded


def table(measured: Sequence[Run]) -> Iterator[str]:
    """Lines of markdown."""
    yield "| --vram | graphs | prefill, tok/s | decode, tok/s | found | link, MB a token | GB/s | of limit |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for run in measured:
        cells = (
            run.vram,
            run.graphs,
            f"{run.prefill:.0f}",
            f"{run.decode:.1f}",
            f"{run.hit_rate:.0%}",
            f"{run.link_bytes / 1e6:.1f}",
            f"{run.gpu_gb_s:.0f}",
            f"{run.share:.0%}",
        )
        yield f"| {' | '.join(cells)} |"
