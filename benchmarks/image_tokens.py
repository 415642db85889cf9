"""Measures what fewer image tokens, and cut margins, cost in answers.

    python benchmarks/image_tokens.py [--images 150] [--model nano] [--json FILE]
    python benchmarks/image_tokens.py --pages 20

Each held-out image is read at a share of the tokens that it has by the model's own limit, and then on paper
that is wider by a margin on each side, as it is and with the margin cut. Right: every token of the right
answer is the likeliest one, and an end after it. KL: from the answer's distributions at all tokens, without
margins. With --pages: the tokens of generated pages at 150 dpi by the published limits, as they are, trimmed,
and bounded, and the seconds of an image of the published model that follow from measured rates.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageOps

import ernie_local
from ernie_calibration.documents import KINDS, draw_document
from ernie_calibration.generated import held_out_samples
from ernie_calibration.sample import Sample
from ernie_calibration.sequences import EncodedSample, SampleEncoder
from ernie_local.loading import LoadedModel
from ernie_local.media.detail import LOW_DETAIL_TOKENS, with_image_tokens
from ernie_local.media.image_size import measure_image
from ernie_local.media.open_image import open_images
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.trim import trim_margins
from ernie_local.session.writer import ChatWriter

SHARES = (1.0, 0.9, 0.75, 0.5, 0.35)
MARGIN = 0.15  # of the sides of the image, on each side of it

Encode = Callable[[SampleEncoder, Sample], EncodedSample]


def bounded(share: float) -> Encode:
    """At most this share of the tokens that an image would have."""

    def encode(encoder: SampleEncoder, sample: Sample) -> EncodedSample:
        full = measure_image(sample.name, sample.images[0].size, encoder.processor).tokens
        processor = with_image_tokens(encoder.processor, round(share * full))
        return replace(encoder, processor=processor).encode(sample)

    return encode


def on_wide_paper(image: Image.Image) -> Image.Image:
    """The image with a margin of the colour of its corner."""
    paper = image.getpixel((0, 0))
    assert isinstance(paper, tuple), "generated images are RGB"
    return ImageOps.expand(image, (round(MARGIN * image.width), round(MARGIN * image.height)), paper)


def with_margins(encoder: SampleEncoder, sample: Sample) -> EncodedSample:
    """On wide paper."""
    return encoder.encode(replace(sample, images=tuple(on_wide_paper(image) for image in sample.images)))


def trimmed(encoder: SampleEncoder, sample: Sample) -> EncodedSample:
    """On wide paper, whose margins are cut."""
    opened = [open_images(on_wide_paper(image))[0] for image in sample.images]
    return encoder.encode(replace(sample, images=tuple(trim_margins(one).image for one in opened)))


SETTINGS: dict[str, Encode] = {
    **{f"{share:.0%} of the tokens": bounded(share) for share in SHARES},
    f"with margins of {MARGIN:.0%}": with_margins,
    "with margins, trimmed": trimmed,
}


# Seconds for 3600 patches, 900 tokens, of the published sizes on two cores of Zen 3: what grows with the
# patches of the tower, what grows with their square, and prefill of the tokens.
LINEAR_SECONDS, ATTENTION_SECONDS, PREFILL_SECONDS, TOKENS = 37.0, 21.0, 19.0, 900
LONG_SIDE, STRIP_WIDTH = 1754, 472  # A4 and a receipt of 80 mm at 150 dpi
BOUNDS = (800, LOW_DETAIL_TOKENS)


@dataclass(frozen=True, slots=True)
class Answered:
    """One image read at one setting. log_probs: (answer tokens and an end, vocabulary)."""

    num_tokens: int
    is_right: bool
    log_probs: torch.Tensor


def answered(model: LoadedModel, stop_ids: frozenset[int], sample: EncodedSample) -> Answered:
    """How the model would write the answer of the first turn. stop_ids: any of them ends it."""
    start, end = sample.answers[0]
    logits = model.logits(sample.token_ids, sample.patches)[start - 1 : end - 1]
    *chosen, last = logits.argmax(-1).tolist()
    is_right = tuple(chosen) == sample.token_ids[start : end - 1] and last in stop_ids
    return Answered(sample.patches[0].num_tokens, is_right, logits.log_softmax(-1))


def read_all(model: LoadedModel, encode: Encode, samples: Sequence[Sample]) -> Iterator[Answered]:
    """Every sample at one setting."""
    encoder = SampleEncoder.of_model(model.directory)
    stop_ids = ChatWriter(model.files).stop_ids
    for sample in samples:
        yield answered(model, stop_ids, encode(encoder, sample))


def predicted_seconds(tokens: float) -> float:
    """Until the first word about an image of so many tokens."""
    share = tokens / TOKENS
    return (LINEAR_SECONDS + PREFILL_SECONDS) * share + ATTENTION_SECONDS * share**2


def at_150_dpi(kind: str, image: Image.Image) -> Image.Image:
    """The page at its usual size."""
    scale = STRIP_WIDTH / image.width if kind == "receipt strip" else LONG_SIDE / max(image.size)
    return image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC)


def show_pages(count: int) -> None:
    """A line for each kind of page: means of `count` pages."""
    processor = ImageProcessorConfig()
    bounded_ones = [with_image_tokens(processor, bound) for bound in BOUNDS]
    columns = "".join(f" {f'<= {bound}':>12}" for bound in BOUNDS)
    print(f"{'tokens (seconds)':<18} {'whole':>12} {'trimmed':>12}{columns} {'trim ms':>8}")
    for kind in KINDS:
        tokens: list[list[int]] = []
        spent = 0.0
        for index in range(count):
            page = at_150_dpi(kind, draw_document(kind, f"tokens/{index}", held_out=True).image)
            (opened,) = open_images(page)
            started = time.process_time()
            cut = trim_margins(opened)
            spent += time.process_time() - started
            settings = (
                (page, processor),
                (cut.image, processor),
                *((cut.image, one) for one in bounded_ones),
            )
            tokens.append([measure_image(kind, image.size, one).tokens for image, one in settings])
        means = [sum(column) / count for column in zip(*tokens, strict=True)]
        line = "".join(f" {mean:6.0f} ({predicted_seconds(mean):3.0f})" for mean in means)
        print(f"{kind:<18}{line} {1000 * spent / count:8.1f}")


def measure() -> None:
    """Command line: a table, and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="nano", help="directory or nano")
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--pages", type=int, help="count the tokens of so many pages of each kind instead")
    arguments = parser.parse_args()
    if arguments.pages:
        show_pages(arguments.pages)
        return
    torch.set_num_threads(arguments.threads)
    model = ernie_local.load(arguments.model)
    samples = list(held_out_samples(arguments.images, transcript_every=0))
    reference: list[Answered] = []
    results = {}
    print(f"{'setting':<26} {'tokens':>7} {'right':>11} {'lost':>5} {'won':>4} {'KL':>8} {'ms':>6}")
    for name, encode in SETTINGS.items():
        started = time.perf_counter()
        found = list(read_all(model, encode, samples))
        seconds = time.perf_counter() - started
        reference = reference or found
        pairs = list(zip(reference, found, strict=True))
        positions = sum(len(one.log_probs) for one in found)
        # Both are written along the same right answer.
        divergence = sum(
            float((full.log_probs.exp() * (full.log_probs - one.log_probs)).sum()) for full, one in pairs
        )
        result = {
            "tokens": sum(one.num_tokens for one in found) / len(found),
            "right": sum(one.is_right for one in found),
            "asked": len(found),
            "lost": sum(full.is_right and not one.is_right for full, one in pairs),
            "won": sum(one.is_right and not full.is_right for full, one in pairs),
            "kl": divergence / positions,
            "milliseconds": 1000 * seconds / len(found),
        }
        results[name] = result
        right = f"{result['right']} of {len(found)}"
        print(
            f"{name:<26} {result['tokens']:7.1f} {right:>11} {result['lost']:5} {result['won']:4} "
            f"{result['kl']:8.4f} {result['milliseconds']:6.1f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    measure()
