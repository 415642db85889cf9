"""A simulated machine beside a real one: nano's decode with paged experts, predicted from measured rates.

    python benchmarks/simulated_gpu.py [--tokens 200]

Rates are measured in the same run. The last line is one JSON object: for each share of the memory above the
floor the milliseconds of a token, measured and predicted, their ratio, and whether all counters agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from full_size import random_ids

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.experts.build import PagingSetup, paging_plan
from ernie_local.experts.options import PagingStats
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading.build import build_model
from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.machine.survey import survey_machine
from ernie_local.model_files import ModelFiles
from ernie_local.planner.model_size import read_model
from ernie_local.planner.rates import DecodeWork, PagingCosts, Rates
from ernie_local.replay.simulate import MachineTimes, simulate

SHARES = (0.0, 0.25, 0.5, 1.0)
ROOM = 1 << 26


def machine_times(work: DecodeWork, rates: Rates) -> MachineTimes:
    costs = PagingCosts(0.0, 0.0) if rates.paging is None else rates.paging
    always = sum(num_bytes / rates.bytes_per_second(name) for name, num_bytes in work.always_bytes.items())
    # A page on disk may be smaller than what is computed with.
    expert_seconds = work.expert_bytes / rates.bytes_per_second(work.expert_format)
    return MachineTimes(
        disk_bytes_per_second=rates.disk_bytes_per_second,
        memory_bytes_per_second=work.page_bytes / expert_seconds,
        token_seconds=rates.token_seconds + work.num_layers * rates.layer_seconds + always,
        layer_seconds=costs.layer_seconds,
        page_seconds=costs.page_seconds,
    )


def measure(directory: Path, share: float, num_tokens: int, rates: Rates) -> dict[str, object]:
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        plan = paging_plan(checkpoint, config)
        assert plan is not None
        expert_bytes = plan.least_bytes + int(share * (plan.most_bytes - plan.least_bytes))
        paging = PagingSetup(expert_bytes)
        network = build_model(checkpoint, config, torch.float32, torch.device("cpu"), paging)
    experts = network.experts
    assert isinstance(experts, PagedExperts)
    experts.make_room = lambda owner, num_bytes: None  # type: ignore[method-assign]  # not in a trace
    settings = EngineSettings(num_tokens + 40, torch.float32)
    model = LoadedModel(network, ModelFiles(directory, network.config), settings, 0, 0.0)
    recorder, engine = model.record_trace(), model.engine()
    ids = random_ids(32 + num_tokens, config.text.vocab_size)
    engine.prefill(ids[:32])
    seconds = []
    for token_id in ids[32:]:
        start = time.perf_counter()
        engine.decode(token_id)
        seconds.append(time.perf_counter() - start)
    work = read_model(directory).decode_work("float32")
    found = simulate(recorder.trace(), expert_bytes, machine_times(work, rates))
    predicted = 1e3 * found.decode_seconds / num_tokens
    measured = 1e3 * statistics.median(seconds)
    experts.close()
    return {
        "share": share,
        "hit_rate": found.stats.banks["text"].decode_hit_rate,
        "measured_ms": measured,
        "predicted_ms": predicted,
        "predicted_by_measured": predicted / measured,
        "counters_agree": counters(found.stats) == counters(experts.stats),
    }


def counters(stats: PagingStats) -> PagingStats:
    """What was counted, without what was timed."""
    return dataclasses.replace(stats, decode_wait_seconds=0.0, prompt_wait_seconds=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    survey = survey_machine(lambda what: print(f"measuring: {what}", file=sys.stderr))
    print(f"{'share':>6} {'hits':>7} {'measured ms':>12} {'predicted ms':>13} {'ratio':>6}  counters")
    rows = []
    for share in SHARES:
        row = measure(NANO_DIRECTORY, share, arguments.tokens, survey.plain_rates)
        rows.append(row)
        print(
            f"{share:6.2f} {row['hit_rate']:7.1%} {row['measured_ms']:12.3f} {row['predicted_ms']:13.3f} "
            f"{row['predicted_by_measured']:6.2f}  {'agree' if row['counters_agree'] else 'DIFFER'}"
        )
    print(json.dumps({"rows": rows, "rates": dataclasses.asdict(survey.plain_rates)}))


if __name__ == "__main__":
    main()
