"""Generated images: equal seeds draw the same, answers are printed, the two worlds share no name."""

from __future__ import annotations

from random import Random

import numpy
import pytest

from ernie_calibration.drawn_image import DrawnImage
from ernie_calibration.images import KINDS, draw_image
from ernie_calibration.images.charts import random_values
from ernie_calibration.names import NameSource, is_held_out

SIZES = ((364, 252), (252, 364), (280, 168))


def images(kind: str, held_out: bool = False) -> list[DrawnImage]:
    return [
        draw_image(kind, seed, width=SIZES[seed % 3][0], height=SIZES[seed % 3][1], held_out=held_out)
        for seed in range(12)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_draw_equal_images_and_others_do_not(kind: str) -> None:
    first, again = images(kind), images(kind)
    for left, right in zip(first, again, strict=True):
        assert numpy.array_equal(numpy.asarray(left.image), numpy.asarray(right.image))
        assert left.questions == right.questions
    assert len({drawn.image.tobytes() for drawn in first}) == len(first)


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_printed_on_the_page(kind: str) -> None:
    for drawn in images(kind):
        printed = drawn.transcript
        assert drawn.questions
        for question in drawn.questions:
            assert question.answer in printed, question


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_mentions_are_spelled_by_glyphs_of_the_page(kind: str) -> None:
    for drawn in images(kind):
        on_page = set(drawn.glyphs)
        for question in drawn.questions:
            for run in (question.printed, *(run for _, run in question.mentions)):
                for character, glyph in zip(run.text, run.glyphs, strict=True):
                    if character not in " \n":
                        assert glyph is not None
                        assert glyph.character == character
                        assert glyph in on_page
            for words, _ in question.mentions:
                assert words.lower() in question.text.lower()


def test_the_price_of_an_item_stands_in_the_line_of_the_item() -> None:
    for drawn in images("receipt"):
        for question in drawn.questions:
            if question.kind == "line item":
                price, item = question.printed.glyphs[0], question.mentions[0][1].glyphs[0]
                assert price is not None
                assert item is not None
                assert price.y == item.y
                assert price.x > item.x


def test_extreme_bars_stand_out() -> None:
    for seed in range(50):
        values = sorted(random_values(Random(seed), 4))
        assert min(values[1] - values[0], values[-1] - values[-2]) >= values[-1] / 6


@pytest.mark.parametrize("kind", KINDS)
def test_glyphs_spell_the_transcript_and_lie_on_the_page(kind: str) -> None:
    for drawn in images(kind):
        spelled = sorted(glyph.character for glyph in drawn.glyphs)
        assert spelled == sorted(drawn.transcript.replace(" ", "").replace("\n", ""))
        for glyph in drawn.glyphs:
            assert 0 <= glyph.x < drawn.width
            assert 0 <= glyph.y < drawn.height


def test_scale_makes_the_image_larger_and_nothing_else() -> None:
    small, large = (draw_image("invoice", 3, width=364, height=252, scale=scale) for scale in (1.0, 2.75))
    assert small.image.size == (364, 252)
    assert large.image.size == (1001, 693)
    assert [glyph.character for glyph in small.glyphs] == [glyph.character for glyph in large.glyphs]
    for left, right in zip(small.glyphs, large.glyphs, strict=True):
        assert abs(left.x - right.x) < 12


def test_a_total_is_the_sum_of_its_items() -> None:
    for drawn in images("receipt"):
        rows = [line.rsplit(" ", 1) for line in drawn.transcript.split("\n") if " " in line]
        total = next(q.answer for q in drawn.questions if q.kind == "total").lstrip("$£")
        prices = [value for _, value in rows if "." in value and value.replace(".", "", 1).isdigit()]
        items = [price for price in prices if price != total]
        assert round(sum(float(price) for price in items), 2) == float(total)


def test_the_two_worlds_share_no_name() -> None:
    training, held_out = NameSource(Random(1), held_out=False), NameSource(Random(1), held_out=True)
    for draw in ("item", "surname", "first_name", "city"):
        seen = {getattr(training, draw)() for _ in range(300)}
        unseen = {getattr(held_out, draw)() for _ in range(300)}
        assert not {name.lower() for name in seen} & {name.lower() for name in unseen}
        assert all(is_held_out(name) for name in unseen)
        assert len(unseen) > 5
