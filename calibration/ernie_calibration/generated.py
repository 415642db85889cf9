"""Samples from all generators, mixed: what a model is calibrated on, and held-out ones to judge it on.

Owns the mix, its proportions, page sizes of the small pictures, and seeds. Knows nothing of models; what a
picture shows or a text says is its generator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count as count_up
from random import Random

from ernie_calibration import charts, documents
from ernie_calibration.pictures import Picture, make_picture
from ernie_calibration.pictures.picture import Question
from ernie_calibration.pictures.text_card import READ_QUESTIONS
from ernie_calibration.sample import Sample, Turn
from ernie_calibration.scan import worn
from ernie_calibration.texts import make_texts

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
# The families in turn. Of twelve samples: three small pictures, all that nano reads; three pages of documents
# and two charts, what the original is for; four texts, so that text experts see a third of all tokens or so.
MIX = (
    "pictures",
    "texts",
    "documents",
    "charts",
    "texts",
    "pictures",
    "documents",
    "texts",
    "charts",
    "pictures",
    "texts",
    "documents",
)
# One small picture in so many is read out whole: long answers are what text experts see most of.
_TRANSCRIPT_EVERY = 3
_QUESTIONS_EACH = 3
_FIRST_SEED = 9_000_000  # training draws 60 random bits, evaluation begins at 5,000,000
# Of pages: how many are read out whole before questions are asked, and how many are worn.
_PAGE_TRANSCRIPTS = 0.75
_WORN = {"documents": 0.5, "charts": 0.2}


def generated_samples(
    count: int, seed: int = 0, *, families: Sequence[str] = MIX, held_out: bool = False
) -> Iterator[Sample]:
    """`count` samples, the `families` in turn (see FAMILIES; one may stand there more than once).

    The same seed gives the same samples, and more of them begin with the same ones. A family's samples do not
    depend on the families beside it. held_out: names, sentences, layouts and looks that no other sample has.
    Kinds of turns are those of scoring.METRIC_OF_KIND. Raises KeyError for an unknown family.
    """
    sources = {family: FAMILIES[family](seed, held_out) for family in families}
    for index in range(count):
        yield next(sources[families[index % len(families)]])


def draw_in_turn(random: Random, index: int, seed: int | str, *, held_out: bool = False) -> Picture:
    """The kinds in turn by `index`, page and scale by `random`, all that is printed by `seed`."""
    kind = list(PAGES)[index % len(PAGES)]
    width, height = random.choice(PAGES[kind])
    scale = random.choice(SCALES)
    return make_picture(kind, seed, width=width, height=height, scale=scale, held_out=held_out)


def _pictures(seed: int, held_out: bool) -> Iterator[Sample]:
    """Small pictures, a third of them with a transcript, the others with questions."""
    random = Random(f"calibration/{seed}")
    for index in count_up():
        picture = draw_in_turn(random, index, f"{_FIRST_SEED + index}/{seed}", held_out=held_out)
        if index % _TRANSCRIPT_EVERY == 0:
            turns = [Turn(random.choice(READ_QUESTIONS), picture.transcript, "transcript")]
        else:
            asked = random.sample(picture.questions, min(_QUESTIONS_EACH, len(picture.questions)))
            turns = _turns(asked)
        yield Sample(_name(picture.kind, seed, index, held_out), (picture.image,), tuple(turns))


def _pages(family: str, seed: int, held_out: bool) -> Iterator[Sample]:
    """Page-sized pictures, many worn, most with their transcript first and all with questions."""
    random = Random(f"{family}/{seed}/{held_out}")
    kinds = list(documents.KINDS if family == "documents" else charts.KINDS)
    make = documents.make_document if family == "documents" else charts.make_chart
    for index in count_up():
        picture = make(kinds[index % len(kinds)], f"{seed}/{index}", held_out=held_out)
        image = worn(random, picture.image) if random.random() < _WORN[family] else picture.image
        whole, *others = picture.questions
        asked = random.sample(others, min(_QUESTIONS_EACH, len(others)))
        turns = _turns([whole, *asked] if random.random() < _PAGE_TRANSCRIPTS else asked)
        yield Sample(_name(picture.kind, seed, index, held_out), (image,), tuple(turns))


def _texts(seed: int, held_out: bool) -> Iterator[Sample]:
    for index in count_up():
        turns = make_texts(f"{seed}/{index}", held_out=held_out)
        yield Sample(_name("text", seed, index, held_out), (), turns)


FAMILIES: dict[str, Callable[[int, bool], Iterator[Sample]]] = {
    "pictures": _pictures,
    "documents": lambda seed, held_out: _pages("documents", seed, held_out),
    "charts": lambda seed, held_out: _pages("charts", seed, held_out),
    "texts": _texts,
}


def _turns(questions: Sequence[Question]) -> list[Turn]:
    return [Turn(question.text, question.answer, question.kind) for question in questions]


def _name(kind: str, seed: int, index: int, held_out: bool) -> str:
    return f"{'held out/' * held_out}{kind}/{seed}/{index}"
