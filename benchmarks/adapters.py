"""What a LoRA adapter costs a decoded token: with and without one, turn about in one run.

    python benchmarks/synthesize.py MODEL --experts w2 --dense w4
    python benchmarks/adapters.py MODEL [--rank 16] [--rounds 6] [--tokens 8] [--only REGEX]

The adapter is random, of every matrix of attention, shared experts, dense layers and routed experts (--only:
of weights whose name matches), written as PEFT writes one and read again. Both models map one file, so that
their weights are in memory once. Tokens are random, the same for both. The last line is one JSON object:
medians of tokens a second, and of what the adapter costs within a round: by the clock, and of processors'
time, which means little with several threads, as these wait for work by looking for it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ernie_local import load
from ernie_local.checkpoint.names import name_in_file
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ModelConfig, read_config
from ernie_local.loading import LoadedModel
from ernie_local.machine.random_model import text_ids

EVERY_MATRIX = r"layers\.\d+\.(self_attn|mlp|moe\.shared_experts)\.\w+\.weight|experts\..*"


def write_adapter(directory: Path, config: ModelConfig, rank: int, pattern: str) -> int:
    """A random adapter in bfloat16, as PEFT writes it; how many matrices it changes."""
    shapes, tensors = ExpectedShapes(config), dict[str, torch.Tensor]()
    generator = torch.Generator().manual_seed(0)
    stems = []
    for name in shapes.names(with_experts=True):
        if not re.fullmatch(pattern, name):
            continue
        rows, columns = shapes.shape(name) or ()
        stem = name_in_file(name, "hub", config.text.banks).removesuffix(".weight")
        stems.append(stem)
        for matrix, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            drawn = torch.randn(shape, generator=generator) / 100
            tensors[f"base_model.model.{stem}.lora_{matrix}.weight"] = drawn.bfloat16()
    save_file(tensors, directory / "adapter_model.safetensors")
    modules = sorted({stem.rpartition(".")[2] for stem in stems})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": modules}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return len(stems)


def decode_seconds(
    model: LoadedModel, context_size: int, rounds: int, tokens: int
) -> Iterator[tuple[float, float]]:
    """By the clock and of processors, of `tokens` tokens, again and again.

    The first time is for memory to be filled.
    """
    engine = model.engine(context_size=context_size)
    engine.prefill(text_ids(model.config, 64, 0))
    ids = iter(text_ids(model.config, (rounds + 1) * tokens, 99))
    for _ in range(rounds + 1):
        began = time.perf_counter(), time.process_time()
        for _ in range(tokens):
            engine.decode(next(ids))
        yield time.perf_counter() - began[0], time.process_time() - began[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=8, help="of each model in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ram", default="auto")
    parser.add_argument("--only", metavar="REGEX", default=EVERY_MATRIX)
    arguments = parser.parse_args()
    config = read_config(arguments.model)
    context_size = 64 + (arguments.rounds + 1) * arguments.tokens + 1
    same: dict[str, Any] = {"threads": arguments.threads, "context_size": context_size, "ram": arguments.ram}
    with tempfile.TemporaryDirectory() as directory:
        count = write_adapter(Path(directory), config, arguments.rank, arguments.only)
        began = time.perf_counter()
        adapted = load(arguments.model, lora=[directory], **same)
        print(
            f"{count} matrices, loaded in {time.perf_counter() - began:.1f} s",
            *adapted.adapter_notes,
            sep="\n",
        )
    models = [load(arguments.model, **same), adapted]
    for model in models:
        model.wait_until_resident()
        assert model.paging is None, "more memory is needed"
    rounds = zip(
        *(decode_seconds(model, context_size, arguments.rounds, arguments.tokens) for model in models),
        strict=True,
    )
    next(rounds)
    costs: dict[str, list[float]] = {"clock": [], "processors": []}
    spent: list[list[float]] = [[], []]
    for pair in rounds:
        for name, without, with_one in zip(costs, *pair, strict=True):
            costs[name].append(with_one / without - 1)
        for found, (seconds, _) in zip(spent, pair, strict=True):
            found.append(seconds)
        shown = ", ".join(f"{found[-1]:+.1%} of {name}" for name, found in costs.items())
        print(f"{pair[0][0]:.3f} s without, {pair[1][0]:.3f} s with: {shown}", flush=True)
    rates = [arguments.tokens / statistics.median(found) for found in spent]
    result = {
        "rank": arguments.rank,
        "threads": arguments.threads,
        "tokens_per_second": {"without": rates[0], "with": rates[1]},
        "cost": {name: statistics.median(found) for name, found in costs.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
