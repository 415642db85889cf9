"""What paging costs where nothing is ever read: decode with every page in the cache, beside resident experts.

    python benchmarks/paging_overhead.py MODEL [--rounds 5]

Two models of full size do not fit, so each round loads one after the other in a process of its own;
the last line is one JSON object with the medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from full_size import random_ids

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading.build import build_model
from ernie_local.loading.paging import paging_plan
from ernie_local.planner.placement import Placement


def decode_ms(directory: Path, *, is_paged: bool, num_tokens: int) -> float:
    """Median milliseconds of a decoded token behind 64 others, every expert in memory."""
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        plan = paging_plan(checkpoint, config)
        assert plan is not None
        placement = Placement(plan.most_bytes + (1 << 29), 2048) if is_paged else None
        model = build_model(checkpoint, config, torch.float32, torch.device("cpu"), placement)
    if isinstance(model.experts, PagedExperts):
        experts, cache = model.experts, model.experts.top.cache
        for key in experts.store.experts:
            assert cache.expect(key), key
            experts.store.read(key, experts.top.page(key))
            cache.arrived(key)
            cache.settle(key)
    engine = Engine(model, 1024, torch.bfloat16)
    ids = random_ids(64 + num_tokens, config.text.vocab_size)
    engine.prefill(ids[:64])
    seconds = []
    for token in ids[64:]:
        start = time.perf_counter()
        engine.decode(token)
        seconds.append(time.perf_counter() - start)
    if isinstance(model.experts, PagedExperts):
        assert model.experts.stats.decode_bytes_read == 0
    return 1e3 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["paged", "resident"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only is not None:
        print(decode_ms(arguments.model, is_paged=arguments.only == "paged", num_tokens=arguments.tokens))
        return
    seconds: dict[str, list[float]] = {"resident": [], "paged": []}
    for _ in range(arguments.rounds):
        for kind, measured in seconds.items():
            command = [sys.executable, __file__, str(arguments.model), "--only", kind]
            command += ["--tokens", str(arguments.tokens), "--threads", str(arguments.threads)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured.append(float(output.split()[-1]))
            print(kind, f"{measured[-1]:.2f} ms", flush=True)
    medians = {kind: statistics.median(measured) for kind, measured in seconds.items()}
    print(json.dumps({**medians, "slower": medians["paged"] / medians["resident"] - 1}))


if __name__ == "__main__":
    main()
