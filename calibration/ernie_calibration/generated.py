"""Samples from the picture generators, for calibration and, with other seeds and names, for judging.

Owns page sizes, proportions and seeds. Knows nothing of models; what a picture shows is its generator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ernie_calibration.pictures import Picture, make_picture
from ernie_calibration.pictures.text_card import READ_QUESTIONS
from ernie_calibration.sample import Sample, Turn

LANDSCAPE, PORTRAIT = (308, 200), (224, 280)
PAGES = {
    "invoice": (LANDSCAPE, PORTRAIT),
    "receipt": (PORTRAIT,),
    "form": (LANDSCAPE, PORTRAIT),
    "table": (LANDSCAPE,),
    "bar chart": (LANDSCAPE,),
    "line chart": (LANDSCAPE,),
}
SCALES = (1.0, 1.5, 2.0, 3.25)
# One picture in so many is read out whole: long answers are what text experts see most of.
_TRANSCRIPT_EVERY = 3
_QUESTIONS_EACH = 3
_FIRST_SEED = 9_000_000  # training draws 60 random bits, evaluation begins at 5,000,000


def generated_samples(count: int, seed: int = 0) -> Iterator[Sample]:
    """`count` documents and charts, the kinds in turn, with questions or a transcript each.

    The same seed gives the same samples, and more of them begin with the same ones.
    """
    random = Random(f"calibration/{seed}")
    kinds = list(PAGES)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        width, height = random.choice(PAGES[kind])
        scale = random.choice(SCALES)
        picture = make_picture(kind, f"{_FIRST_SEED + index}/{seed}", width=width, height=height, scale=scale)
        turns = _transcript(random, picture) if index % _TRANSCRIPT_EVERY == 0 else _answers(random, picture)
        yield Sample(f"{kind}/{seed}/{index}", (picture.image,), turns)


def _transcript(random: Random, picture: Picture) -> tuple[Turn, ...]:
    return (Turn(random.choice(READ_QUESTIONS), picture.transcript, "transcript"),)


def _answers(random: Random, picture: Picture) -> tuple[Turn, ...]:
    questions = random.sample(picture.questions, min(_QUESTIONS_EACH, len(picture.questions)))
    return tuple(Turn(question.text, question.answer, question.kind) for question in questions)
