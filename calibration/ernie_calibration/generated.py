"""Mixes samples from all generators: samples to calibrate a model on, and held-out ones to judge it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count as count_up
from random import Random
from typing import Literal

from ernie_calibration import charts, documents
from ernie_calibration.drawn_image import DrawnImage, Question
from ernie_calibration.images import draw_image
from ernie_calibration.images.forms import READ_QUESTIONS
from ernie_calibration.sample import Sample, SampleTurn
from ernie_calibration.scan import worn
from ernie_calibration.skills.samples import clip_samples, closeup_samples, field_samples
from ernie_calibration.texts import make_texts

SampleFamily = Literal["images", "documents", "charts", "texts", "fields", "clips", "closeups"]
# Page sizes (width, height) in page units of each kind of small image, and how much larger it is drawn.
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
# The order of the families. Of twelve samples three are small images, which is all that nano reads; five are
# documents and charts, which the original is for; four are texts, so that text experts see about a third of
# all tokens.
MIX: tuple[SampleFamily, ...] = (
    *("images", "texts", "documents", "charts", "texts", "images"),
    *("documents", "texts", "charts", "images", "texts", "documents"),
)
# What nano was trained on: it reads small images, finds places in them, watches clips, and zooms.
SKILL_MIX: tuple[SampleFamily, ...] = ("images", "fields", "clips", "closeups", "images", "texts")
TRANSCRIPT = "transcript"
LONG_KINDS = (TRANSCRIPT, "text")  # long answers, which are never right to the letter
# One small image in three is read out whole: text experts see mostly long answers.
_TRANSCRIPT_EVERY = 3
_QUESTIONS_EACH = 3
# Of pages: the share that is read out whole before questions are asked, and the share that is worn.
_PAGE_TRANSCRIPTS = 0.75
_WORN = {"documents": 0.5, "charts": 0.2}
# Seeds of small images. Training draws 60 random bits.
_CALIBRATION_SEED, _HELD_OUT_SEED = 9_000_000, 5_000_000
_SEEDS_EACH = 10**9  # no image of one `seed` is an image of another


def generated_samples(
    count: int, seed: int = 0, *, families: Sequence[str] = MIX, held_out: bool = False
) -> Iterator[Sample]:
    """`count` samples, the `families` in turn; a family may be listed more than once.

    The same seed gives the same samples; a larger count begins with the same ones. A family's samples do not
    depend on the other families. held_out: names, sentences, layouts and looks that no other sample has.
    Kinds of turns are those of scoring.METRIC_OF_KIND. KeyError for an unknown family.
    """
    return _in_turn(count, families, {family: _FAMILIES[family](seed, held_out) for family in families})


def held_out_samples(
    count: int,
    seed: int = 0,
    *,
    families: Sequence[SampleFamily] = ("images",),
    questions_each: int = 1,
    transcript_every: int = 3,
) -> Iterator[Sample]:
    """`count` samples, the families in turn, each with all its long turns and up to `questions_each` others.

    transcript_every: every how many small images have a last turn that asks for the whole text (0: none).
    Neither training nor calibration draws their seeds and names. The same seed gives the same samples; a
    larger count begins with the same ones.
    """
    sources: dict[str, Iterator[Sample]] = {
        family: _held_out_images(seed, questions_each, transcript_every)
        if family == "images"
        else _held_out_pages(count, seed, family, questions_each)
        for family in families
    }
    return _in_turn(count, families, sources)


def _in_turn(
    count: int, families: Sequence[str], sources: Mapping[str, Iterator[Sample]]
) -> Iterator[Sample]:
    for index in range(count):
        yield next(sources[families[index % len(families)]])


def _next_image(random: Random, index: int, seed: int | str, *, held_out: bool) -> DrawnImage:
    """The kinds take turns by `index`; `random` chooses page and scale, `seed` everything printed."""
    kind = list(PAGES)[index % len(PAGES)]
    width, height = random.choice(PAGES[kind])
    scale = random.choice(SCALES)
    return draw_image(kind, seed, width=width, height=height, scale=scale, held_out=held_out)


def _images(seed: int, held_out: bool) -> Iterator[Sample]:
    """Small images, a third of them with a transcript, the others with questions."""
    random = Random(f"calibration/{seed}")
    for index in count_up():
        drawn = _next_image(random, index, f"{_CALIBRATION_SEED + index}/{seed}", held_out=held_out)
        if index % _TRANSCRIPT_EVERY == 0:
            turns = [SampleTurn(random.choice(READ_QUESTIONS), drawn.transcript, TRANSCRIPT)]
        else:
            turns = _some(random, drawn.questions, _QUESTIONS_EACH)
        yield Sample(_name(drawn.kind, seed, index, held_out), (drawn.image,), tuple(turns))


def _held_out_images(seed: int, questions_each: int, transcript_every: int) -> Iterator[Sample]:
    first = _HELD_OUT_SEED + seed * _SEEDS_EACH
    random = Random(f"held out/{first}")
    for index in count_up():
        drawn = _next_image(random, index, first + index, held_out=True)
        choice = Random(index)
        turns = _some(choice, drawn.questions, questions_each)
        if transcript_every and index % transcript_every == 0:
            turns.append(SampleTurn(choice.choice(READ_QUESTIONS), drawn.transcript, TRANSCRIPT))
        yield Sample(f"{drawn.kind}/held out/{first + index}", (drawn.image,), tuple(turns))


def _pages(family: str, seed: int, held_out: bool) -> Iterator[Sample]:
    """Page-sized images, many of them worn, most with a transcript first, all with questions."""
    random = Random(f"{family}/{seed}/{held_out}")
    kinds = list(documents.KINDS if family == "documents" else charts.KINDS)
    draw = documents.draw_document if family == "documents" else charts.draw_chart
    for index in count_up():
        drawn = draw(kinds[index % len(kinds)], f"{seed}/{index}", held_out=held_out)
        image = worn(random, drawn.image) if random.random() < _WORN[family] else drawn.image
        turns = _some(random, drawn.questions[1:], _QUESTIONS_EACH)
        if random.random() < _PAGE_TRANSCRIPTS:
            turns.insert(0, _turn(drawn.questions[0]))
        yield Sample(_name(drawn.kind, seed, index, held_out), (image,), tuple(turns))


def _held_out_pages(count: int, seed: int, family: SampleFamily, questions_each: int) -> Iterator[Sample]:
    for sample in generated_samples(count, seed, families=(family,), held_out=True):
        long = [turn for turn in sample.turns if turn.kind in LONG_KINDS]
        short = [turn for turn in sample.turns if turn.kind not in LONG_KINDS]
        yield replace(sample, turns=(*long, *short[:questions_each]))


def _texts(seed: int, held_out: bool) -> Iterator[Sample]:
    for index in count_up():
        turns = make_texts(f"{seed}/{index}", held_out=held_out)
        yield Sample(_name("text", seed, index, held_out), (), turns)


_FAMILIES: dict[str, Callable[[int, bool], Iterator[Sample]]] = {
    "images": _images,
    "documents": partial(_pages, "documents"),
    "charts": partial(_pages, "charts"),
    "texts": _texts,
    "fields": field_samples,
    "clips": clip_samples,
    "closeups": closeup_samples,
}


def _some(random: Random, questions: Sequence[Question], most: int) -> list[SampleTurn]:
    return [_turn(question) for question in random.sample(questions, min(most, len(questions)))]


def _turn(question: Question) -> SampleTurn:
    return SampleTurn(question.text, question.answer, question.kind)


def _name(kind: str, seed: int, index: int, held_out: bool) -> str:
    return f"{'held out/' * held_out}{kind}/{seed}/{index}"
