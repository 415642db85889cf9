"""Pictures to judge a model on: seeds and names that neither training nor calibration has drawn.

Owns which pictures, which of their questions, and which are read out whole. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ernie_calibration.generated import draw_in_turn
from ernie_calibration.pictures.text_card import READ_QUESTIONS
from ernie_calibration.sample import Sample, Turn

TRANSCRIPT = "transcript"
_FIRST_SEED = 5_000_000
_SEEDS_EACH = 10**9  # so that no two numbers of `seed` share a picture


def held_out_samples(
    count: int, seed: int = 0, *, questions_each: int = 1, transcript_every: int = 3
) -> Iterator[Sample]:
    """`count` documents and charts, the kinds in turn, with at most so many questions each.

    Every so many of them (0: none) has a last turn that asks for its whole text. The same seed gives the same
    samples, and more of them begin with the same ones.
    """
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
