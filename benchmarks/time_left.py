"""Compares the time that `quantize` says is left with what the rest then took, in CPU seconds of the process.

python benchmarks/time_left.py --work DIR --samples 24
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_quant import rehearsal, units
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experts", default="w2")
    arguments = parser.parse_args()

    # Other processes on the machine count for nothing.
    torch.set_num_threads(1)
    clock = SimpleNamespace(monotonic=time.process_time, perf_counter=time.process_time)
    for module in (units, rehearsal):
        module.time = clock  # type: ignore[attr-defined]

    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    drawn = generated_samples(arguments.samples, seed=arguments.seed)
    told: list[tuple[float, float]] = []
    job = Job(
        NANO_DIRECTORY,
        arguments.work / "out",
        format_tables(read_config(NANO_DIRECTORY), FormatChoice(arguments.experts)),
        Recipe(),
        [encoder.encode(sample) for sample in drawn],
        resume="never",
        on_unit=lambda _unit, done, of_all: told.append((time.process_time(), of_all - done)),
        on_note=print,
    )
    quantize_checkpoint(job)
    began, end = told[0][0], time.process_time()
    tokens = sum(len(sequence.token_ids) for sequence in job.sequences)
    print(f"{tokens} tokens, {end - began:.1f} s\n| share of the time | told, s | true, s | told / true |")
    print("|---:|---:|---:|---:|")
    for share in SHARES:
        now, left = next(one for one in told if one[0] - began >= share * (end - began))
        rest = end - now
        print(f"| {(now - began) / (end - began):.0%} | {left:.1f} | {rest:.1f} | {left / rest:.2f} |")


if __name__ == "__main__":
    main()
