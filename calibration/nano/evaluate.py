"""Measures a nano checkpoint on held-out images, clips and sheets, as it is and with damaged experts.

    python calibration/nano/evaluate.py --model ernie_local/nano --images 500 --json build/nano/results.json

Answers are greedy, in float32. Right means equal to the last character on images, and what the kind's measure
counts as right on skills. The damaged variants show that the experts matter: a bank that costs nothing to
lose cannot tell quantizers apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

for folder in (".", "..", "../quant"):
    sys.path.insert(0, str((Path(__file__).resolve().parents[1] / folder).resolve()))

import torch
from torch import Tensor

import ernie_local
from ernie_calibration.generated import SampleFamily, held_out_samples
from ernie_calibration.scoring import score
from ernie_local.errors import NoAnswer
from ernie_local.experts.resident import ResidentExperts
from ernie_local.loading import LoadedModel
from ernie_quant.evaluation.observation import Observer

# What is measured beside reading, each on its own family of samples.
SKILL_FAMILIES: tuple[SampleFamily, ...] = ("fields", "clips", "closeups")
# Thoughts, call and answer about a close-up take at most 120 tokens where they are right.
ZOOM_TOKENS = 400


def count_right(model: LoadedModel, count: int, questions_each: int) -> dict[str, list[float]]:
    """Right and asked per question kind."""
    counts: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for sample in held_out_samples(count, questions_each=questions_each, transcript_every=0):
        for turn in sample.turns:
            chat = ernie_local.Chat(model)
            with suppress(NoAnswer):
                list(chat.ask(turn.question, images=sample.images, thinking=False, max_tokens=40))
            answer = "" if chat.last is None else chat.last.text
            counts[turn.kind][0] += answer == turn.answer
            counts[turn.kind][1] += 1
    return dict(sorted(counts.items()))


def count_skills(model: LoadedModel, count: int) -> tuple[dict[str, list[float]], int]:
    """Points and questions per kind, on `count` samples of each family; and the number of zoomed ones.

    A point is a right answer. A question that needs a closer look is asked without the zoom tool, and under
    another name with it: then only an answer after such a look counts.
    """
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    num_zoomed = 0
    observer = Observer(model, ZOOM_TOKENS)
    for family in SKILL_FAMILIES:
        samples = held_out_samples(count, families=(family,), questions_each=9)
        for observations in observer.observe(samples, lambda *_: []):
            for asked in (observation.asked for observation in observations):
                kind, expected = asked.turn.kind, asked.turn.answer
                answers = {kind: asked.answer}
                if (zoomed := asked.zoomed) is not None:
                    num_zoomed += zoomed.has_zoomed
                    answers[f"{kind}, zoomed"] = zoomed.text if zoomed.has_zoomed else ""
                for name, answer in answers.items():
                    counts[name][0] += score(kind, answer, expected)
                    counts[name][1] += 1
    return dict(sorted(counts.items())), num_zoomed


def round_to_two_bits(weight: Tensor, group_size: int = 64) -> Tensor:
    """Plain rounding of (..., columns) to four levels from each group's least to its largest value."""
    groups = weight.unflatten(-1, (-1, min(group_size, weight.shape[-1])))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 3).clamp(min=1e-12)
    rounded: Tensor = ((groups - low) / step).round() * step + low
    return rounded.flatten(-2)


def _resident(model: LoadedModel) -> ResidentExperts:
    experts = model.network.experts
    if not isinstance(experts, ResidentExperts):
        raise TypeError(f"the experts are held by {type(experts).__name__}, not in plain tensors")
    return experts


def _zero(model: LoadedModel, bank: str) -> None:
    for (_, name), weights in _resident(model).banks.items():
        if name == bank:
            weights.down.zero_()


def _round(model: LoadedModel) -> None:
    for weights in _resident(model).banks.values():
        for tensor in (weights.gate_up, weights.down):
            tensor.copy_(round_to_two_bits(tensor))


DAMAGES: dict[str, Callable[[LoadedModel], None]] = {
    "as trained": lambda _: None,
    "text bank zeroed": lambda model: _zero(model, "text"),
    "vision bank zeroed": lambda model: _zero(model, "vision"),
    "all experts rounded to 2 bits (rtn, group 64)": _round,
}


def evaluate_nano() -> None:
    """Command line: a table, and the same as JSON."""
    parser = argparse.ArgumentParser(description="Exact answers of a nano checkpoint on held-out images.")
    parser.add_argument("--model", default="nano", help="directory or nano")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--skills", type=int, default=200, help="samples of each family of skills")
    parser.add_argument("--questions-each", type=int, default=9, help="most questions asked about each image")
    parser.add_argument("--damaged", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write the counts here as well")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for name, damage in DAMAGES.items():
        if name != "as trained" and not arguments.damaged:
            continue
        model = ernie_local.load(arguments.model)
        damage(model)
        # One question an image is enough for a damaged variant.
        counts = count_right(model, arguments.images, arguments.questions_each if name == "as trained" else 1)
        right, asked = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
        skills, num_zoomed = count_skills(model, arguments.skills) if arguments.skills else ({}, 0)
        results[name] = {
            "right": right,
            "asked": asked,
            "kinds": counts,
            "skills": skills,
            "zoomed": num_zoomed,
        }
        print(f"{name}: {right:g} of {asked} = {right / asked:.1%}")
        figures: dict[str, list[float]] = {**counts, **skills}
        for kind, (kind_right, kind_asked) in figures.items():
            print(f"    {kind}: {kind_right:g} of {kind_asked} = {kind_right / kind_asked:.1%}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    evaluate_nano()
