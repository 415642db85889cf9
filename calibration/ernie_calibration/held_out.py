"""Samples to judge a model on: seeds and names that neither training nor calibration has drawn.

Owns which of them, which of their questions, and which small pictures are read out whole. Knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from ernie_calibration.generated import draw_in_turn, generated_samples
from ernie_calibration.pictures.text_card import READ_QUESTIONS
from ernie_calibration.sample import Sample, Turn

Family = Literal["pictures", "documents", "charts", "texts"]
TRANSCRIPT = "transcript"
# Long answers: all of them are asked for, and none is ever the right one to the letter.
LONG_KINDS = (TRANSCRIPT, "text")
_FIRST_SEED = 5_000_000
_SEEDS_EACH = 10**9  # so that no two numbers of `seed` share a picture


def held_out_samples(
    count: int,
    seed: int = 0,
    *,
    families: Sequence[Family] = ("pictures",),
    questions_each: int = 1,
    transcript_every: int = 3,
) -> Iterator[Sample]:
    """`count` samples, the families in turn, with at most so many questions each and all their long turns.

    transcript_every: of small pictures, which ones have a last turn that asks for the whole text (0: none).
    The same seed gives the same samples, and more of them begin with the same ones.
    """
    sources = {
        family: _pictures(count, seed, questions_each, transcript_every)
        if family == "pictures"
        else _generated(count, seed, family, questions_each)
        for family in families
    }
    for index in range(count):
        yield next(sources[families[index % len(families)]])


def _pictures(count: int, seed: int, questions_each: int, transcript_every: int) -> Iterator[Sample]:
    first = _FIRST_SEED + seed * _SEEDS_EACH
    random = Random(f"held out/{first}")
    for index in range(count):
        picture = draw_in_turn(random, index, first + index, held_out=True)
        choice = Random(index)
        chosen = choice.sample(picture.questions, min(questions_each, len(picture.questions)))
        turns = [Turn(question.text, question.answer, question.kind) for question in chosen]
        if transcript_every and index % transcript_every == 0:
            turns.append(Turn(choice.choice(READ_QUESTIONS), picture.transcript, TRANSCRIPT))
        yield Sample(f"{picture.kind}/held out/{first + index}", (picture.image,), tuple(turns))


def _generated(count: int, seed: int, family: Family, questions_each: int) -> Iterator[Sample]:
    for sample in generated_samples(count, seed, families=(family,), held_out=True):
        long = [turn for turn in sample.turns if turn.kind in LONG_KINDS]
        short = [turn for turn in sample.turns if turn.kind not in LONG_KINDS]
        yield replace(sample, turns=(*long, *short[:questions_each]))
