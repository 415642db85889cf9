"""Measures what small pages cost: how far answers move when they replace missing experts of little weight.

    ernie-local quantize nano OUT --dual --samples 120 --family images
    python benchmarks/small_pages.py OUT [--documents 60] [--share 0.5]

For each threshold of router weight it prints the KL divergence from the same checkpoint with all large pages
in memory, over the answers to held-out images, decoded token by token, and the bytes read. The memory of the
experts is a share of all pages.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ernie_calibration.generated import generated_samples
from ernie_calibration.sample import Sample
from ernie_local import load
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.experts.build import PagingSetup, paging_plan
from ernie_local.experts.options import PagingOptions
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading import LoadedModel
from ernie_local.loading.build import build_model
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.session.writer import ChatWriter
from ernie_local.text.template import user_message
from ernie_quant.evaluation.comparison import divergence
from ernie_quant.evaluation.summary import bootstrap_ratio

THRESHOLDS = (None, 0.05, 0.1, 0.15, 0.2, 1.1)
CONTEXT = 2048


def paged(directory: Path, share: float, small_below: float | None) -> ErnieModel:
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        plan = paging_plan(checkpoint, config)
        assert plan is not None
        memory = max(plan.least_bytes, int(share * plan.most_bytes))
        options = PagingOptions(small_below=small_below)
        paging = PagingSetup(memory, options)
        return build_model(checkpoint, config, torch.float32, torch.device("cpu"), paging)


def questions(
    model: LoadedModel, samples: Sequence[Sample]
) -> Iterator[tuple[list[int], list[Patches], list[int]]]:
    """Prompt, images and right answer of each turn."""
    writer = ChatWriter(model.files)
    for sample in samples:
        patches = model.patches(sample.images)
        for turn in sample.turns:
            message = user_message(turn.question, (image.num_tokens for image in patches))
            prompt = writer.prompt([message], thinking=False).token_ids
            yield list(prompt), patches, writer.tokenizer.encode(turn.answer, allow_special=False)


def answers(
    model: LoadedModel, asked: Sequence[tuple[list[int], list[Patches], list[int]]]
) -> list[torch.Tensor]:
    """Of each question, logits behind the prompt and every token of the right answer."""
    logits = []
    for prompt, patches, answer in asked:
        engine = model.engine(context_size=len(prompt) + len(answer))
        rows = [engine.prefill(prompt, patches), *(engine.decode(token) for token in answer)]
        logits.append(torch.stack(rows))
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--share", type=float, default=0.5)
    arguments = parser.parse_args()
    model = load(arguments.model, context_size=CONTEXT)
    model.wait_until_resident()
    samples = list(generated_samples(arguments.documents, seed=7, families=["images"], held_out=True))
    asked = list(questions(model, samples))
    expected = answers(model, asked)
    num_tokens = sum(len(answer) for _, _, answer in asked)
    print(f"{len(asked)} questions, {num_tokens} decoded tokens, {arguments.share:.0%} of experts in memory")
    print("weight below   KL [95 %]                      read a token   small pages a token")
    for threshold in THRESHOLDS:
        model.network = paged(arguments.model, arguments.share, threshold)
        experts = model.network.experts
        assert isinstance(experts, PagedExperts)
        # Conversations have memory of their own here.
        experts.make_room = lambda *_: None  # type: ignore[method-assign]
        found = answers(model, asked)
        moved = [divergence(one, other) for one, other in zip(expected, found, strict=True)]
        kl = bootstrap_ratio([float(one.sum()) for one in moved], [len(one) for one in moved])
        read = experts.stats.decode_bytes_read / num_tokens
        small = experts.stats.small_pages_used / num_tokens
        name = "never" if threshold is None else "always" if threshold > 1 else f"{threshold:g}"
        print(
            f"{name:>12}   {kl.value:.5f} [{kl.low:.5f}, {kl.high:.5f}]   {read / 1e3:9.0f} kB   {small:6.2f}"
        )
        experts.close()


if __name__ == "__main__":
    main()
