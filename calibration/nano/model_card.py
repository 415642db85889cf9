"""Writes the model card of nano from the figures that evaluate.py measured.

python calibration/nano/model_card.py --results build/nano/results.json --out ernie_local/nano
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HEAD = """\
---
license: apache-2.0
library_name: ernie-local
pipeline_tag: image-text-to-text
---
# nano

ERNIE-4.5-VL in miniature: the same architecture, {parameters:.1f} M parameters, trained from scratch on
rendered invoices, receipts, forms, tables and charts. It ships with ernie-local so that every command works
offline, and it is small enough to test a quantizer or a cache on. It is no substitute for the real model: it
knows the images of `calibration/ernie_calibration/images` and little else.

Two banks of 16 experts a layer (text 192 wide, vision 64), top 4, one shared expert, auxiliary-loss-free
balancing, dense layer 0, six layers of width 192, a vision tower of one layer, a tied head, 432 SentencePiece
tokens.

## Measured

{images} held-out images: other seeds, and vendor, item and place names that no training image had.
Greedy, float32. Exact means equal to the last character.

| question kind | exact | of | share |
|---|---:|---:|---:|
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
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for length in entry["shape"]:
                    size *= length
                total += size
    return total


def card(results: dict[str, dict[str, object]], parameters: int, images: int, note: str) -> str:
    """The whole page; `note` opens its limits."""

    def row(name: str, right: int, asked: int) -> str:
        return f"| {name} | {right} | {asked} | {right / asked:.1%} |"

    whole = results["as trained"]
    kinds = whole["kinds"]
    right, asked = whole["right"], whole["asked"]
    assert isinstance(kinds, dict)
    assert isinstance(right, int)
    assert isinstance(asked, int)
    lines = [row(kind, *pair) for kind, pair in kinds.items()]
    lines.append(row("**all**", right, asked))
    damages = []
    for name, result in results.items():
        if name == "as trained":
            continue
        damaged_right, damaged_asked = result["right"], result["asked"]
        assert isinstance(damaged_right, int)
        assert isinstance(damaged_asked, int)
        damages.append(row(name, damaged_right, damaged_asked))
    head = HEAD.format(parameters=parameters / 1e6, images=images)
    return (
        head
        + "\n".join(lines)
        + "\n"
        + TAIL.format(damages="\n".join(damages), note=f"{note}\n\n" if note else "")
    )


def write_nano_card() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write nano's model card from measured figures.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the model directory")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--note", default="", help="a paragraph that opens the limits")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    parameters = count_parameters(arguments.out)
    page = card(results, parameters, arguments.images, arguments.note)
    (arguments.out / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_nano_card()
