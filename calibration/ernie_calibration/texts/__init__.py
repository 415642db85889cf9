"""Makes conversations without an image: they give text experts tokens that documents never send them."""

from __future__ import annotations

from random import Random

from ernie_calibration.documents.language import CODES, load_language
from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.sample import SampleTurn
from ernie_calibration.texts.exercises import make_program, make_sum
from ernie_calibration.texts.prose import make_prose

MAKERS = (make_sum, make_program, make_prose, make_prose)
MOST_TURNS = 6
ENGLISH_WEIGHT = 4  # against 1 for each of the other languages


def make_texts(seed: int | str, *, held_out: bool = False) -> tuple[SampleTurn, ...]:
    """One to six unrelated turns of kind "text" that `seed` stands for, with names of one language.

    Held-out texts have names, sentences, forms of questions, sums and programs that no other text has.
    """
    random = Random(f"texts/{seed}/{held_out}")
    code = random.choices(CODES, [ENGLISH_WEIGHT if code == "en" else 1 for code in CODES])[0]
    names = DocumentNames(random, load_language(code), held_out)
    count = random.randint(1, MOST_TURNS)
    return tuple(SampleTurn(*random.choice(MAKERS)(random, names), "text") for _ in range(count))
