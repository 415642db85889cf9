"""Compares our quantizing methods on a trained network that reads lines of text.

    pip install onnx onnxruntime
    pip install --no-deps rapidocr-onnxruntime==1.4.4
    python benchmarks/third_witness.py          # a table; the last line is one JSON object

The recognition network of PP-OCRv4 comes with a package and needs no network connection. All its matrix
products of at least 64 x 64 are quantized, convolutions of 1 x 1 among them. They are calibrated on drawn
lines of the standard library's docstrings, each matrix on its inputs in the exact network, and tested on
docstrings of other packages in other fonts: the share of the power of each matrix's output that is lost, on
the exact network's inputs; and with all matrices replaced at once, the KL divergence of what is read at each
step, and how many lines are read as before. Bits include everything that is stored.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

import torch
from PIL import Image, ImageDraw
from real_text import installed_packages, standard_library
from run_record import machine_and_commit
from text_reader import LINE_HEIGHT, ReaderMatrix, TextReader
from torch.nn import functional
from witness_methods import OUR_VARIANTS, Variant

from ernie_calibration.drawn_image import (
    MORE_FONT_FILES,
    VARIED_LOOK,
    load_font,
    random_background,
    random_ink,
)
from ernie_calibration.scan import worn
from ernie_local.packing.formats import COLUMN_STEP
from ernie_quant.evaluation.summary import Estimate, bootstrap_ratio

Tensor = torch.Tensor
LEAST_SIZE = 64
TEST_FONTS = ("built-in", "cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "cmb10.ttf")
CALIBRATION_FONTS = tuple(sorted(set(MORE_FONT_FILES) - set(TEST_FONTS)))
# Computer Modern draws other characters in the places of the rest.
_IN_ALL_FONTS = re.compile(r"[('-]*[A-Za-z0-9][A-Za-z0-9.,:;()?'%-]*")


@dataclass(frozen=True)
class Line:
    """A line of text as it is drawn."""

    text: str
    image: Image.Image


def draw_lines(passages: list[str], fonts: tuple[str, ...], seed: int) -> list[Line]:
    """Some words of each passage, half of the lines worn."""
    random = Random(seed)
    lines = []
    for passage in passages:
        words = [word for word in passage.split() if _IN_ALL_FONTS.fullmatch(word)]
        wanted, start = random.randint(10, 40), random.randrange(max(1, len(words) - 8))
        text = ""
        for word in words[start:]:
            if len(text) + len(word) >= wanted:
                break
            text = f"{text} {word}".strip()
        if text:
            lines.append(Line(text, draw(random, text, random.choice(fonts))))
    return lines


def draw(random: Random, text: str, font: str) -> Image.Image:
    """One line with a margin, on paper or on something dark."""
    face = load_font(font, random.randint(24, 44))
    left, top, right, bottom = face.getbbox(text)
    margin, around = random.randint(3, 9), random.randint(4, 20)
    size = round(right - left) + 2 * around, round(bottom - top) + 2 * margin
    background = random_background(random, VARIED_LOOK)
    image = Image.new("RGB", size, background)
    ink = random_ink(random, on_dark=sum(background) < 384)
    ImageDraw.Draw(image).text((around - left, margin - top), text, font=face, fill=ink)
    if random.random() < 0.5:
        image = worn(random, image)
    width = max(LINE_HEIGHT, round(image.width * LINE_HEIGHT / image.height))
    return image.resize((width, LINE_HEIGHT), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Reading:
    """What the network makes of lines.

    moments: (inputs, inputs) of each matrix. log_shares: of each line, (steps, characters).
    """

    moments: list[Tensor]
    log_shares: list[Tensor]


def read_exactly(reader: TextReader, matrices: list[ReaderMatrix], lines: list[Line]) -> Reading:
    captured = list(dict.fromkeys(matrix.inputs for matrix in matrices))
    session = reader.open({}, captured)
    sums = [torch.zeros(matrix.weights.shape[1], matrix.weights.shape[1]) for matrix in matrices]
    counts = [0] * len(matrices)
    shares = []
    for line in lines:
        log_shares, values = session.read(line.image)
        shares.append(log_shares)
        by_name = dict(zip(captured, values, strict=True))
        for index, matrix in enumerate(matrices):
            tokens = matrix.tokens(by_name[matrix.inputs])
            sums[index].addmm_(tokens.t(), tokens)
            counts[index] += len(tokens)
    return Reading([total / count for total, count in zip(sums, counts, strict=True)], shares)


def quantize(variant: Variant, weights: Tensor, moments: Tensor) -> Tensor:
    """Columns of zeros make up what is missing to a whole step; they never have an input."""
    missing = -weights.shape[1] % COLUMN_STEP
    padded_moments = functional.pad(moments, (0, missing, 0, missing))
    left = variant.quantize(functional.pad(weights, (0, missing)), padded_moments)
    return left[:, : weights.shape[1]]


def bits_of(variant: Variant, matrices: list[ReaderMatrix]) -> float:
    shapes = [tuple(matrix.weights.shape) for matrix in matrices]
    num_bytes = sum(
        variant.num_bytes(rows, -(-columns // COLUMN_STEP) * COLUMN_STEP) for rows, columns in shapes
    )
    return 8 * num_bytes / sum(rows * columns for rows, columns in shapes)


def lost_power(exact: Tensor, left: Tensor, moments: Tensor) -> float:
    """The mean square of what is missing in the outputs, by that of the outputs."""
    away = exact - left
    return float(((away @ moments) * away).sum() / ((exact @ moments) * exact).sum())


@dataclass(frozen=True)
class Result:
    """lost: of each matrix. kl, steps: of each line. same: share of lines that are read as before."""

    variant: Variant
    bits: float
    lost: list[float]
    kl: list[float]
    steps: list[int]
    same: float

    @property
    def mean_kl(self) -> Estimate:
        return bootstrap_ratio(self.kl, self.steps)


def measure(
    reader: TextReader,
    matrices: list[ReaderMatrix],
    variant: Variant,
    calibration: Reading,
    lines: list[Line],
    reference: Reading,
) -> Result:
    left = [
        quantize(variant, matrix.weights, moments)
        for matrix, moments in zip(matrices, calibration.moments, strict=True)
    ]
    lost = [
        lost_power(matrix.weights, weights, moments)
        for matrix, weights, moments in zip(matrices, left, reference.moments, strict=True)
    ]
    session = reader.open(
        {matrix.constant: matrix.stored(weights) for matrix, weights in zip(matrices, left, strict=True)}
    )
    kl, same = [], []
    for line, exact in zip(lines, reference.log_shares, strict=True):
        found, _ = session.read(line.image)
        kl.append(float((exact.exp() * (exact - found)).sum()))
        same.append(reader.text(found) == reader.text(exact))
    steps = [len(exact) for exact in reference.log_shares]
    return Result(variant, bits_of(variant, matrices), lost, kl, steps, statistics.mean(same))


def told(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def print_results(results: list[Result]) -> None:
    print("| format | method | bits | lost | KL | same text |")
    print("|---|---|---:|---:|---:|---:|")
    for result in results:
        print(
            f"| `{result.variant.format_name}` | {result.variant.method} | {result.bits:.2f} "
            f"| {statistics.mean(result.lost):.2%} | {told(result.mean_kl)} | {result.same:.1%} |"
        )
    by_name = {str(result.variant): result for result in results}
    of_w2, of_w2t = by_name["gptq w2"], by_name["gptq w2t"]
    lost = statistics.mean(of_w2t.lost) / statistics.mean(of_w2.lost)
    print(f"\nw2t by w2: lost {lost:.3f}, KL {told(bootstrap_ratio(of_w2t.kl, of_w2.kl))}")
    smaller = sum(new < old for new, old in zip(of_w2t.lost, of_w2.lost, strict=True))
    print(f"w2t loses less than w2 in {smaller} of {len(of_w2.lost)} matrices")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--calibration", type=int, default=600, help="lines")
    parser.add_argument("--test", type=int, default=300, help="lines")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("the network is not installed: pip install --no-deps rapidocr-onnxruntime==1.4.4")
    models = Path(spec.origin).parent / "models"
    reader = TextReader(models / "ch_PP-OCRv4_rec_infer.onnx", arguments.threads)
    matrices = reader.matrices(LEAST_SIZE)
    calibration = draw_lines(standard_library(arguments.calibration), CALIBRATION_FONTS, seed=1)
    test = draw_lines(installed_packages(arguments.test), TEST_FONTS, seed=2)
    with torch.inference_mode():
        seen = read_exactly(reader, matrices, calibration)
        reference = read_exactly(reader, matrices, test)
        as_drawn = [
            reader.text(read).split() == line.text.split()
            for read, line in zip(reference.log_shares, test, strict=True)
        ]
        num_weights = sum(matrix.weights.numel() for matrix in matrices)
        print(f"{len(matrices)} matrices, {num_weights:,} weights; {len(calibration)} lines to calibrate on")
        print(f"{len(test)} to test on, {statistics.mean(as_drawn):.1%} of them read as drawn", flush=True)
        results = [measure(reader, matrices, variant, seen, test, reference) for variant in OUR_VARIANTS]
    print_results(results)
    summary = {
        str(one.variant): {"bits": one.bits, "lost": one.lost, **asdict(one.mean_kl), "same": one.same}
        for one in results
    }
    lines = {"calibration": len(calibration), "test": len(test)}
    record = {**machine_and_commit(), "threads": arguments.threads, "lines": lines}
    print(json.dumps({**record, "results": summary}))


if __name__ == "__main__":
    main()
