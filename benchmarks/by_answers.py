"""Measures what it is worth to quantize by the answers: nano at two bits, each part of it alone and together.

Every variant is quantized from the same samples and held against the exact model on the same held-out ones.
Ratios of divergences are paired, with 95 % intervals from resampling whole samples:

    python benchmarks/by_answers.py --samples 120 --held-out 200 --family images
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy
import torch
from run_record import machine_and_commit

from ernie_calibration.generated import MIX, SKILL_MIX, generated_samples
from ernie_calibration.sequences import EncodedSample, SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_quant import expert, recipe
from ernie_quant.evaluation.comparison import Comparison
from ernie_quant.evaluation.run import Evaluation, EvaluationJob, find_candidate
from ernie_quant.evaluation.summary import Estimate, bootstrap_ratio
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe

# Parts that are switched off by what they come from in the product.
_NO_WORTH = partial(patch.object, expert, "_WORTH_POWER", 0.0)
_NO_SIDES = partial(patch.object, expert, "output_sides", lambda *_: (None, None))


@dataclass(frozen=True)
class Variant:
    """changes: what is patched while it is quantized; None quantizes without answers."""

    name: str
    changes: tuple[Callable[[], object], ...] | None


def damping(share: float) -> Callable[[], object]:
    return partial(patch.object, recipe, "OUTPUT_DAMPING", share)


VARIANTS = [
    Variant("without", None),
    Variant("tokens by worth", (_NO_SIDES,)),
    Variant("two-sided", (_NO_WORTH,)),
    Variant("both", ()),
    Variant("both, damping 1", (damping(1.0),)),
    Variant("both, damping 0.1", (damping(0.1),)),
    Variant("both, worth in full", (partial(patch.object, expert, "_WORTH_POWER", 2.0),)),
]


@contextmanager
def changed(variant: Variant) -> Iterator[None]:
    with ExitStack() as stack:
        for change in variant.changes or ():
            stack.enter_context(change())  # type: ignore[arg-type]
        yield


def quantized(variant: Variant, sequences: list[EncodedSample], format_name: str, folder: Path) -> Path:
    tables = format_tables(read_config(NANO_DIRECTORY), FormatChoice(experts=format_name))
    out = folder / variant.name.replace(" ", "-")
    with changed(variant):
        made = Recipe(by_answers=variant.changes is not None)
        quantize_checkpoint(Job(NANO_DIRECTORY, out, tables, made, sequences))
    return out


def by_sample(comparisons: list[Comparison]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Summed divergences and numbers of positions, (samples,) each."""
    names = list(dict.fromkeys(each.document for each in comparisons))
    places = [names.index(each.document) for each in comparisons]
    sums = numpy.bincount(places, [float(each.divergence.sum()) for each in comparisons])
    return sums, numpy.bincount(places, [len(each.divergence) for each in comparisons])


def told(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=120, help="to calibrate on")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--family", default="images", help="of both; all and skills are mixes")
    parser.add_argument("--format", default="w2", dest="format_name")
    parser.add_argument("--only", nargs="*", help="names of variants, besides the first")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    families = {"all": MIX, "skills": SKILL_MIX}.get(arguments.family, (arguments.family,))
    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    longest = read_config(NANO_DIRECTORY).text.max_position_embeddings
    drawn = map(encoder.encode, generated_samples(arguments.samples, families=families))
    sequences = [sample for sample in drawn if len(sample.token_ids) <= longest]
    held_out = tuple(dict.fromkeys(families))
    reference = find_candidate("nano")
    evaluation = Evaluation(
        EvaluationJob(reference, arguments.held_out, 0, held_out, 1, "known", "cpu", "float32")
    )
    variants = [
        one for one in VARIANTS if not arguments.only or one.name in (VARIANTS[0].name, *arguments.only)
    ]
    found: dict[str, tuple[Estimate, Estimate, float]] = {}
    base = None
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            began = time.perf_counter()
            out = quantized(variant, sequences, arguments.format_name, Path(folder))
            seconds = time.perf_counter() - began
            sums, positions = by_sample(evaluation.evaluate(find_candidate(str(out))).comparisons)
            base = sums if base is None else base
            found[variant.name] = bootstrap_ratio(sums, positions), bootstrap_ratio(sums, base), seconds
            print(variant.name, *(told(one, 4) for one in found[variant.name][:2]), flush=True)
    print(f"\n| {arguments.family}, `{arguments.format_name}` | KL | by the first line | seconds |")
    print("|---|---:|---:|---:|")
    for name, (mean, ratio, seconds) in found.items():
        print(f"| {name} | {told(mean, 4)} | {told(ratio, 2)} | {seconds:.0f} |")
    settings = {"samples": len(sequences), "held_out": arguments.held_out, "family": arguments.family}
    figures = {name: {"kl": mean.value, "ratio": ratio.value} for name, (mean, ratio, _) in found.items()}
    print(json.dumps({**machine_and_commit(), **settings, "results": figures}))


if __name__ == "__main__":
    main()
