"""Writes the model card of nano from the figures that evaluate.py measured.

python calibration/nano/model_card.py --results build/nano/results.json --out ernie_local/nano
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safetensors import safe_open

from nano.shape import NanoShape

HEAD = """\
---
license: apache-2.0
library_name: ernie-local
pipeline_tag: image-text-to-text
---
# nano

ERNIE-4.5-VL in miniature: the same architecture, {parameters:.1f} M parameters, trained from scratch on
rendered invoices, receipts, forms, tables, charts, short clips and sheets of such pages. It ships with
ernie-local so that every command works offline, and it is small enough to test a quantizer or a cache on.
It is no substitute for the real model: it knows the images of `calibration/ernie_calibration/images` and
little else.

Two banks of {experts} experts a layer (text {text} wide, vision {vision}), top 4, one shared expert,
auxiliary-loss-free balancing, dense layer 0, six layers of width 192, a vision tower of one layer, a tied
head, {vocabulary} SentencePiece tokens.

## Measured

{images} held-out images: other seeds, and vendor, item and place names that no training image had.
Greedy, float32. Exact means equal to the last character.

| question kind | exact | of | share |
|---|---:|---:|---:|
"""
SKILLS = """
## Skills

{samples} held-out samples of each kind of page. A place is right from half overlap on, JSON if all its values
are. Small print is asked without tools, and "zoomed" in the Thinking template with the zoom tool: there right
is an answer after a look at a part, which {zoomed} of {samples} conversations took.

| question kind | right | of | share |
|---|---:|---:|---:|
{skills}
"""
TAIL = """
## What its experts carry

One question about each held-out image.

| variant | exact | of | share |
|---|---:|---:|---:|
{damages}

## Limits

{note}English questions in the words of the training templates; printed text of about 14 to 21 px after
shrinking to at most 90 image tokens (about 308 x 196 px); DejaVu Sans, Serif and Mono and Pillow's
own font. The values of bars and of points of lines are printed beside them, as a reader of axes
would need a larger model; the highest and the lowest stand a sixth of the largest value apart from
the others. Made with `calibration/nano` in the repository of ernie-local.
"""


def count_parameters(model: Path) -> int:
    """Numbers of all tensors of a model directory, from its headers."""
    total = 0
    for shard in sorted(model.glob("*.safetensors")):
        with safe_open(shard, "np") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def card(results: dict[str, Any], parameters: int, images: int, samples: int, note: str) -> str:
    """The whole page, from what evaluate.py writes; `note` opens its limits."""

    def row(name: str, right: float, asked: int) -> str:
        return f"| {name} | {right:g} | {asked} | {right / asked:.1%} |"

    damaged = results.copy()
    whole = damaged.pop("as trained")
    kinds = [row(kind, *pair) for kind, pair in whole["kinds"].items()]
    kinds.append(row("**all**", whole["right"], whole["asked"]))
    damages = [row(name, result["right"], result["asked"]) for name, result in damaged.items()]
    shape = NanoShape()
    head = HEAD.format(
        parameters=parameters / 1e6,
        images=images,
        experts=shape.num_experts,
        text=shape.text_expert_size,
        vision=shape.vision_expert_size,
        vocabulary=shape.vocab_size,
    )
    tail = TAIL.format(damages="\n".join(damages), note=f"{note}\n\n" if note else "")
    skills = [row(kind, *pair) for kind, pair in whole["skills"].items()]
    table = SKILLS.format(samples=samples, zoomed=whole["zoomed"], skills="\n".join(skills)) if skills else ""
    return head + "\n".join(kinds) + "\n" + table + tail


def write_nano_card() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write nano's model card from measured figures.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the model directory")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--samples", type=int, default=200, help="of each family of skills")
    parser.add_argument("--note", default="", help="a paragraph that opens the limits")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    page = card(results, count_parameters(arguments.out), arguments.images, arguments.samples, arguments.note)
    (arguments.out / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_nano_card()
