"""Measures time and memory of quantizing at the sizes of a published model, from a few of its layers.

    python benchmarks/quantize.py --work DIR                    # gptq w2, 100,000 tokens, 13 GB of disk
    python benchmarks/quantize.py --work DIR --method rtn
    python benchmarks/quantize.py --work DIR --model ernie-4.5-vl-424b-a47b --layers 2 --bank 8 --tokens 20000

The source is random bfloat16 with one dense layer, expert layers and two blocks of the tower; the figures of
a layer, block or expert are multiplied by their number in the model. Tokens are random, images are noise of
1000 x 700 pixels.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections import defaultdict
from pathlib import Path

import torch
from synthesize import full_size_config, peak_mib

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import TextConfig, read_config
from ernie_local.machine.random_model import write_random
from ernie_local.media.patches import Patches
from ernie_local.planner.model_size import PUBLISHED_NAMES, published_model
from ernie_quant.job import Job
from ernie_quant.pipeline import plan_checkpoint, quantize_checkpoint
from ernie_quant.recipe import Recipe

BLOCKS = 32  # of every published tower
GRID = (1, 50, 72)  # patches of an image of 1000 x 700
IMAGE_TOKENS, TEXT_TOKENS = 900, 770  # of a sequence


def random_sequences(num_tokens: int, media_ids: tuple[int, int, int]) -> list[EncodedSample]:
    start, image, end = media_ids
    generator = torch.Generator().manual_seed(0)
    sequences: list[EncodedSample] = []
    while num_tokens > 0:
        pixels = torch.randn(GRID[1] * GRID[2], 588, generator=generator)
        patches = Patches(pixels, GRID, (1000, 700), (1008, 700), IMAGE_TOKENS)
        text = torch.randint(10, 90_000, (TEXT_TOKENS,), generator=generator).tolist()
        ids = (1, start, *[image] * IMAGE_TOKENS, end, *text)
        sequences.append(EncodedSample(f"random {len(sequences)}", ids, (patches,), answers=()))
        num_tokens -= len(sequences[-1].token_ids)
    return sequences


class Clock:
    """Sums up seconds by kind of unit, scaled to the number of such units in the model."""

    def __init__(self, partial: Path, published: TextConfig, small: TextConfig, blocks: int) -> None:
        self._partial, self._blocks = partial, blocks
        expert_layers = sum(published.moe_layers) / sum(small.moe_layers)
        bank = published.banks[0].num_experts / small.banks[0].num_experts
        dense = published.moe_layers.count(False)
        self._times = {"experts": expert_layers * bank, "look through the source": expert_layers * bank}
        self._times |= {
            "attention and routing": expert_layers,
            "outputs of experts": expert_layers,
            "dense layer": dense,
        }
        self._last = time.perf_counter()
        self.predicted = 0.0  # seconds of all, before the first unit
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.most_bytes = 0

    def tick(self, unit: str, _done: float, of_all: float) -> None:
        now = time.perf_counter()
        self.predicted = self.predicted or of_all
        self.seconds[self.kind(unit)] += now - self._last
        self._last = now
        if unit.startswith(("layer ", "sequence ")):
            on_disk = sum(path.stat().st_blocks * 512 for path in self._partial.rglob("*") if path.is_file())
            self.most_bytes = max(self.most_bytes, on_disk)

    @staticmethod
    def kind(unit: str) -> str:
        dense = ("attention 0", "outputs 0", "exact 0", "layer 0")
        if unit.split(".", maxsplit=1)[0] in dense or unit.startswith("layers.0."):
            return "dense layer"
        if unit.startswith("weights of "):
            return "look through the source"
        if " " in unit:
            first = unit.split(maxsplit=1)[0]
            others = {"expert": "experts", "sequence": "vision tower", "outputs": "outputs of experts"}
            return others.get(first, "attention and routing")
        if re.match(r"experts\.", unit):
            return "experts"
        if re.match(r"layers\.[1-9]", unit):
            return "attention and routing"
        return "tower's weights" if unit.startswith("vision.") else "the rest"

    def times(self, kind: str) -> float:
        towers = BLOCKS / self._blocks if kind in ("vision tower", "tower's weights") else 1.0
        return self._times.get(kind, towers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--work", type=Path, required=True, help="where source and checkpoint go; removed at the end"
    )
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--experts", default="w2")
    parser.add_argument("--dense", default="w8")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--model", choices=PUBLISHED_NAMES, default=PUBLISHED_NAMES[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--bank", type=int, default=64, help="experts of each bank of a layer")
    parser.add_argument("--vision-depth", type=int, default=2)
    arguments = parser.parse_args()
    source, out = arguments.work / "source", arguments.work / "out"
    if not source.exists():
        raw = full_size_config(arguments.layers, arguments.vision_depth, arguments.model, arguments.bank)
        write_random(source, raw, None, 0)
    config = read_config(source)
    media = config.media
    sequences: list[EncodedSample] = []
    if arguments.method == "gptq":
        sequences = random_sequences(arguments.tokens, (media.image_start, media.image, media.image_end))
    published = published_model(arguments.model).config.text
    clock = Clock(out.with_name("out.partial"), published, config.text, arguments.vision_depth)
    tables = format_tables(config, FormatChoice(arguments.experts, arguments.dense, "w8", "w8"))
    job = Job(source, out, tables, Recipe(arguments.method), sequences, resume="never", on_unit=clock.tick)
    planned = plan_checkpoint(job).memory_bytes >> 20
    quantize_checkpoint(job)
    weight_bytes = sum(path.stat().st_size for path in out.iterdir())
    print("| | measured, s | times | whole model, min |\n|---|---:|---:|---:|")
    whole = 0.0
    for kind, seconds in clock.seconds.items():
        whole += seconds * clock.times(kind)
        times = clock.times(kind)
        print(f"| {kind} | {seconds:.1f} | {times:g} | {seconds * times / 60:.1f} |")
    print(f"| all | {sum(clock.seconds.values()):.1f} | | {whole / 60:.0f} |")
    print(f"predicted after the rehearsal: {clock.predicted:.1f} s")
    tokens = sum(len(sequence.token_ids) for sequence in sequences)
    print(
        f"{tokens} tokens, {torch.get_num_threads()} threads, peak memory {peak_mib()} MiB, planned {planned}"
    )
    if clock.most_bytes:
        print(f"disk beside the checkpoint: {(clock.most_bytes - weight_bytes) / 2**30:.2f} GiB")
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
