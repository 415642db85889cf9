"""Measures how much faster two processes quantize one model together than one does.

    python benchmarks/processes.py --work DIR [--rounds 2] [--threads 1]     # 2 GB of disk, 6 minutes a round

The source is random: a dense layer and two with 16 + 16 experts, 1024 wide. Three ways in turn, each from
nothing: one process with `--threads`, two such processes, and one process with twice as many threads. A time
is that of the last process to end, from its start: with Python, rehearsal, audit and report. One and two
processes of the same threads must make the same bytes. The last line is JSON: medians, and ratios of a round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from quantize import random_sequences
from synthesize import full_size_config

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import read_config
from ernie_local.machine.random_model import write_random
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe

LAYERS, NUM_TOKENS = 3, 10_000
SMALLER = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "moe_intermediate_size": [768, 384],
}


def write_source(directory: Path) -> None:
    raw = full_size_config(LAYERS, vision_depth=2, num_experts=16) | SMALLER
    write_random(directory, raw, None, 0)


def work(source: Path, out: Path, threads: int) -> None:
    """What each process does."""
    torch.set_num_threads(threads)
    config = read_config(source)
    media = config.media
    sequences = random_sequences(NUM_TOKENS, (media.image_start, media.image, media.image_end))
    tables = format_tables(config, FormatChoice("w2"))
    quantize_checkpoint(Job(source, out, tables, Recipe(), sequences, on_note=lambda _: None))


def timed(source: Path, out: Path, processes: int, threads: int) -> tuple[float, str]:
    """Seconds until all have ended, and a hash of the weights."""
    command = [sys.executable, __file__, "--work", str(source.parent), "--process", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    started = [subprocess.Popen(command, env=environment) for _ in range(processes)]
    assert [process.wait() for process in started] == [0] * processes
    seconds = time.perf_counter() - began
    digest = hashlib.sha256()
    for path in sorted(out.glob("*.safetensors")):
        digest.update(path.read_bytes())
    shutil.rmtree(out)
    return seconds, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="where source and checkpoint go")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source, out = arguments.work / "source", arguments.work / "out"
    if arguments.process is not None:
        work(source, out, arguments.process)
        return
    if not source.exists():
        write_source(source)
    threads = arguments.threads
    ways = {
        f"1 process, {threads} thread(s)": (1, threads),
        f"2 processes, {threads} thread(s) each": (2, threads),
        f"1 process, {2 * threads} threads": (1, 2 * threads),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    hashes: dict[tuple[int, int], str] = {}
    for _ in range(arguments.rounds):
        for way, (processes, of_each) in ways.items():
            spent, hashes[processes, of_each] = timed(source, out, processes, of_each)
            seconds[way].append(spent)
            print(f"{way}: {spent:.1f} s", flush=True)
    assert hashes[1, threads] == hashes[2, threads], "two processes made other bytes than one"
    one, two, wide = seconds.values()
    print("| | median, s | as fast as one |\n|---|---:|---:|")
    for way, took in seconds.items():
        ratio = statistics.median(first / each for first, each in zip(one, took, strict=True))
        print(f"| {way} | {statistics.median(took):.1f} | {ratio:.2f} |")
    print(
        json.dumps(
            {
                "seconds": {way: statistics.median(took) for way, took in seconds.items()},
                "two_to_one": statistics.median(a / b for a, b in zip(one, two, strict=True)),
                "two_to_wide": statistics.median(a / b for a, b in zip(wide, two, strict=True)),
                "cores": os.cpu_count(),
                "rounds": arguments.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
