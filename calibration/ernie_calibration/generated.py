"""Samples from the picture generators for calibration, and the page sizes that pictures are judged at too.

Owns page sizes, proportions and seeds. Knows nothing of models; what a picture shows is its generator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ernie_calibration.pictures import Picture, make_picture
from ernie_calibration.pictures.text_card import READ_QUESTIONS
from ernie_calibration.sample import Sample, Turn

# Page sizes (width, height) in page units that each kind is drawn at, and how much larger it is drawn.
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
    for index in range(count):
        picture = draw_in_turn(random, index, f"{_FIRST_SEED + index}/{seed}")
        turns = _transcript(random, picture) if index % _TRANSCRIPT_EVERY == 0 else _answers(random, picture)
        yield Sample(f"{picture.kind}/{seed}/{index}", (picture.image,), turns)


def draw_in_turn(random: Random, index: int, seed: int | str, *, held_out: bool = False) -> Picture:
    """The kinds in turn by `index`, page and scale by `random`, all that is printed by `seed`."""
    kind = list(PAGES)[index % len(PAGES)]
    width, height = random.choice(PAGES[kind])
    scale = random.choice(SCALES)
    return make_picture(kind, seed, width=width, height=height, scale=scale, held_out=held_out)


def _transcript(random: Random, picture: Picture) -> tuple[Turn, ...]:
    return (Turn(random.choice(READ_QUESTIONS), picture.transcript, "transcript"),)


def _answers(random: Random, picture: Picture) -> tuple[Turn, ...]:
    questions = random.sample(picture.questions, min(_QUESTIONS_EACH, len(picture.questions)))
    return tuple(Turn(question.text, question.answer, question.kind) for question in questions)
