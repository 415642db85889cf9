"""What paging costs where nothing is ever read: decode with every page in the cache, beside resident experts.

    python benchmarks/paging_overhead.py MODEL [--rounds 20] [--first paged]

Both models are in memory and take turns, a token each, so that what else the machine does hits both; the last
line is one JSON object: medians over all tokens, and the median and quartiles of the ratio of a pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from full_size import random_ids

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.experts.build import PagingSetup, paging_plan
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading.build import build_model
from ernie_local.model.ernie import ErnieModel

PROMPT_TOKENS = 64


def build(directory: Path, *, is_paged: bool) -> ErnieModel:
    """A model with every expert in memory: as pages of a cache, or as nothing but memory."""
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        plan = paging_plan(checkpoint, config)
        assert plan is not None
        paging = PagingSetup(plan.most_bytes + (1 << 29)) if is_paged else None
        model = build_model(checkpoint, config, torch.float32, torch.device("cpu"), paging)
        checkpoint.drop_cached()
    if isinstance(model.experts, PagedExperts):
        experts, cache = model.experts, model.experts.top.cache
        for key in experts.store.page_bytes:
            assert cache.reserve(key), key
            experts.store.read(key, experts.top.page(key))
            cache.commit(key)
            cache.admit(key)
    return model


def decode_ms(engine: Engine, token: int) -> float:
    """Milliseconds of one decoded token."""
    start = time.perf_counter()
    engine.decode(token)
    return 1e3 * (time.perf_counter() - start)


def huge_share() -> float:
    """Of the process's memory, what lies in huge pages: from small ones weights come more slowly."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    anonymous, huge = (
        int(rollup.partition(f"{key}:")[2].split()[0]) for key in ("\nAnonymous", "\nAnonHugePages")
    )
    return huge / anonymous


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=16, help="of each model in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first", choices=["resident", "paged"], default="resident", help="loaded first")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engines = {}
    # Who is loaded second gets what memory is left, in smaller pieces perhaps: try both orders.
    for kind in sorted(("resident", "paged"), key=lambda kind: kind != arguments.first):
        model = build(arguments.model, is_paged=kind == "paged")
        engines[kind] = Engine(model, PROMPT_TOKENS + arguments.rounds * arguments.tokens, torch.bfloat16)
    paged = engines["paged"].model.experts
    assert isinstance(paged, PagedExperts)
    ids = random_ids(engines["paged"].context_size, model.config.text.vocab_size)
    for engine in engines.values():
        engine.prefill(ids[:PROMPT_TOKENS])
    print(f"{huge_share():.1%} of memory in huge pages")
    times: dict[str, list[float]] = {kind: [] for kind in engines}
    ratios = []
    for round_id in range(arguments.rounds):
        first = PROMPT_TOKENS + round_id * arguments.tokens
        measured: dict[str, list[float]] = {kind: [] for kind in engines}
        # Token by token, so that both meet the same machine; whoever is second finds the caches the other's.
        for index, token in enumerate(ids[first : first + arguments.tokens]):
            for kind in sorted(engines, reverse=bool(index % 2)):
                measured[kind].append(decode_ms(engines[kind], token))
        ratios += [
            paged / resident - 1
            for paged, resident in zip(measured["paged"], measured["resident"], strict=True)
        ]
        for kind in engines:
            times[kind] += measured[kind]
        medians = {kind: statistics.median(of) for kind, of in sorted(measured.items())}
        print(*(f"{kind} {milliseconds:.2f} ms," for kind, milliseconds in medians.items()), end=" ")
        print(f"{100 * statistics.median(ratios[-arguments.tokens :]):+.1f} %", flush=True)
    assert paged.stats.decode_bytes_read == 0
    quarters = statistics.quantiles(ratios, n=4)
    whole = {f"{kind}_ms": statistics.median(measured) for kind, measured in times.items()}
    print(
        json.dumps(
            {**whole, "slower": statistics.median(ratios), "slower_quartiles": [quarters[0], quarters[2]]}
        )
    )


if __name__ == "__main__":
    main()
