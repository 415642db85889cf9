"""Questions beyond reading: places lie on ink, JSON holds what is printed, months are the calendar's."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import islice
from random import Random

import numpy
import pytest

from ernie_calibration.drawn_image import VARIED_LOOK, DrawnImage
from ernie_calibration.generated import SKILL_MIX, generated_samples
from ernie_calibration.images import draw_image
from ernie_calibration.names import NameSource, is_held_out
from ernie_calibration.sheets import ask_sheet, draw_sheet
from ernie_calibration.skills.fields import ABSENT_ANSWER, ask_absent, ask_json, ask_place, named_fields
from ernie_calibration.skills.knowledge import ask_knowledge, month_of
from ernie_calibration.skills.samples import FIELD_KINDS, SHEETS, closeup_samples
from ernie_local.text.boxes import find_boxes


def varied(kind: str, count: int = 6) -> list[DrawnImage]:
    return [draw_image(kind, seed, width=308, height=196, look=VARIED_LOOK) for seed in range(count)]


@pytest.mark.parametrize("kind", FIELD_KINDS)
def test_the_box_of_a_place_is_full_of_ink_and_the_ink_around_it_ends_there(kind: str) -> None:
    for drawn in varied(kind):
        question = ask_place(Random(1), drawn)
        assert question is not None
        (found,) = find_boxes(question.answer).boxes
        assert found.label is not None
        assert found.label in question.text
        wanted = named_fields(drawn)[found.label]
        assert question.mentions == ((found.label, wanted),)
        digits = [glyph for glyph in question.printed.glyphs if glyph is not None]
        assert len(digits) == sum(len(str(round(side))) for side in found.place)
        printed = [glyph for glyph in wanted.glyphs if glyph is not None]
        assert (digits[0], digits[-1]) == (printed[0], printed[-1])
        sides = (308, 196, 308, 196)
        left, top, right, bottom = (round(x * s / 1000) for x, s in zip(found.place, sides, strict=True))
        pixels = numpy.asarray(drawn.image.convert("L")).astype(int)
        background = numpy.bincount(pixels[top:bottom, left:right].ravel()).argmax()
        ink = numpy.argwhere(abs(pixels[top:bottom, left:right] - background) > 40)
        rows, columns = numpy.sort(ink[:, 0]), numpy.sort(ink[:, 1])
        assert rows[0] <= 2
        assert columns[0] <= 4
        assert rows[-1] >= bottom - top - 3
        assert columns[-1] >= right - left - 5


@pytest.mark.parametrize("kind", FIELD_KINDS)
def test_json_answers_hold_what_is_printed_and_null_for_what_is_not(kind: str) -> None:
    nulls = 0
    for number, drawn in enumerate(varied(kind, 12)):
        random = Random(number)
        question = ask_json(random, drawn, NameSource(random, held_out=False))
        assert question is not None
        for name, value in json.loads(question.answer).items():
            assert name in question.text
            if value is None:
                nulls += 1
                assert name not in named_fields(drawn)
                assert name not in drawn.transcript.lower()
            else:
                assert value in drawn.transcript
        spelled = zip(question.printed.text, question.printed.glyphs, strict=True)
        assert all(glyph is None or glyph.character == letter for letter, glyph in spelled)
        absent = ask_absent(random, drawn, NameSource(random, held_out=False))
        assert absent is not None
        assert absent.answer == ABSENT_ANSWER
    assert nulls


def test_months_are_those_of_the_calendar() -> None:
    names = NameSource(Random(3), held_out=False)
    forms = ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d %b %Y")
    seen = set()
    for date in (names.date() for _ in range(80)):
        for form in forms:
            try:
                parsed = datetime.strptime(date, form)  # noqa: DTZ007  a day has no zone
            except ValueError:
                continue
            seen.add(form)
            assert month_of(date) == parsed.strftime("%B")
    assert seen == set(forms)


def test_differences_and_counts_are_those_of_the_page() -> None:
    kinds = set()
    for drawn in varied("bar chart", 20):
        values = {question.mentions[0][0]: question.answer for question in drawn.questions}
        for question in ask_knowledge(Random(2), drawn):
            kinds.add(question.kind)
            if question.kind == "small count":
                assert int(question.answer) == len(drawn.transcript.splitlines()) - 1
            else:
                (high, _), (low, _) = question.mentions
                assert int(question.answer) == int(values[high]) - int(values[low]) > 0
                assert question.text.index(high) < question.text.rindex(low)
    assert kinds == {"small count", "small difference"}


@pytest.mark.parametrize("held_out", [False, True])
def test_a_card_is_where_the_sheet_says_and_its_heading_is_of_the_right_world(held_out: bool) -> None:
    columns, rows, size = SHEETS[1]
    sheet, again = (
        draw_sheet(5, columns=columns, rows=rows, card_size=size, held_out=held_out) for _ in range(2)
    )
    assert sheet.image.tobytes() == again.image.tobytes()
    assert len(sheet.cards) == columns * rows
    for asked in ask_sheet(Random(1), sheet, 6):
        card = asked.card
        assert sheet.image.crop(card.box).tobytes() == card.drawn.image.tobytes()
        sides = (sheet.image.width, sheet.image.height) * 2
        for place, pixel, side in zip(sheet.thousandths(card), card.box, sides, strict=True):
            assert abs(place * side / 1000 - pixel) <= 0.6
        assert is_held_out(card.heading.text) == held_out
        assert card.heading.text in asked.text
        assert asked.question.text in asked.text


def test_skills_are_equal_for_equal_seeds_and_all_in_their_mix() -> None:
    first, again = (list(generated_samples(6, 4, families=SKILL_MIX)) for _ in range(2))
    assert first == again
    other = list(generated_samples(6, 5, families=SKILL_MIX))
    assert not any(one.name == two.name for one, two in zip(first, other, strict=True))
    kinds = {
        turn.kind for sample in generated_samples(60, families=("fields", "clips")) for turn in sample.turns
    }
    assert {"place", "json fields", "absent field", "clip number", "clip time", "clip word"} <= kinds


def test_a_closeup_shows_the_card_that_its_call_asks_for() -> None:
    for sample in islice(closeup_samples(2, held_out=False), 8):
        (sheet,), (turn,) = sample.images, sample.turns
        (look,) = turn.rounds
        box = look.call.arguments["bbox_2d"]
        assert isinstance(box, list)
        left, top, right, bottom = (
            value * side / 1000 for value, side in zip(box, (*sheet.size, *sheet.size), strict=True)
        )
        assert abs(right - left - look.result.width) <= 2
        assert abs(bottom - top - look.result.height) <= 2
        assert turn.answer in turn.thought
