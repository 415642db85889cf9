"""The measures of answers: against worked examples and a slow textbook distance, for every kind drawn."""

from __future__ import annotations

from random import Random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_calibration.generated import SKILL_MIX, generated_samples
from ernie_calibration.scoring import (
    METRIC_OF_KIND,
    anls,
    edit_distance,
    exact_match,
    overlap,
    relaxed_accuracy,
    score,
)


def slow_distance(first: str, second: str) -> int:
    """The recursion of the textbook."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        slow_distance(first[1:], second) + 1,
        slow_distance(first, second[1:]) + 1,
        slow_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


@given(st.text("abcä", max_size=5), st.text("abcä", max_size=5))
def test_the_edit_distance_is_that_of_the_textbook(first: str, second: str) -> None:
    assert edit_distance(first, second) == slow_distance(first, second)


def test_only_spaces_around_an_exact_answer_are_forgiven() -> None:
    assert exact_match(" 12.50\n", "12.50") == 1.0
    assert exact_match("12.5", "12.50") == 0.0
    assert exact_match("berlin", "Berlin") == 0.0


def test_anls_falls_with_the_distance_and_to_nothing_under_one_half() -> None:
    assert anls("Müller  GmbH", "müller gmbh") == 1.0
    assert anls("abcd", "abcx") == 0.75
    assert anls("abcd", "abxy") == 0.5
    assert anls("abcd", "axyz") == 0.0
    assert anls("", "abc") == 0.0
    assert anls("", "") == 1.0


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("105", "100", 1.0),
        ("105.1", "100", 0.0),
        ("95", "100", 1.0),
        ("-95", "100", 0.0),
        ("-95", "-100", 1.0),
        ("1,204", "1200", 1.0),
        ("12 %", "12", 1.0),
        ("€ 12.4", "12", 1.0),
        ("0", "0", 1.0),
        ("0.001", "0", 0.0),
        ("berlin", "Berlin", 1.0),
        ("Bern", "Berlin", 0.0),
        ("1,20", "1.2", 0.0),
        ("nan", "100", 0.0),
    ],
)
def test_numbers_may_be_off_by_a_twentieth(answer: str, expected: str, right: float) -> None:
    assert relaxed_accuracy(answer, expected) == right


@pytest.mark.parametrize("seed", range(5))
def test_the_overlap_of_boxes_is_that_of_their_pixels(seed: int) -> None:
    random = Random(seed)
    boxes, masks = [], []
    for _ in range(2):
        (left, right), (top, bottom) = (sorted(random.sample(range(40), 2)) for _ in "xy")
        boxes.append((float(left), float(top), float(right), float(bottom)))
        masks.append(numpy.zeros((40, 40), dtype=bool))
        masks[-1][top:bottom, left:right] = True
    counted = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert overlap(*boxes) == pytest.approx(counted)


def test_a_box_is_right_from_half_overlap_on_and_json_whatever_its_spaces() -> None:
    wanted = '{"bbox_2d": [100, 100, 300, 200], "label": "total"}'
    assert score("place", "It is at [100, 100, 300, 150]", wanted) == 1.0
    assert score("place", '{"bbox_2d": [100, 100, 300, 149]}', wanted) == 0.0
    assert score("place", "nowhere", wanted) == 0.0
    assert score("json fields", '{"b":null,"a":"1"}', '{"a": "1", "b": null}') == 1.0
    assert score("json fields", '{"a": "1"}', '{"a": "1", "b": null}') == 0.0
    assert score("json fields", '{"a": "1"', '{"a": "1"}') == 0.0


@pytest.mark.parametrize("count", [12, pytest.param(36, marks=pytest.mark.slow)])
def test_every_kind_that_is_drawn_has_a_measure(count: int) -> None:
    samples = [*generated_samples(count), *generated_samples(12, families=SKILL_MIX)]
    turns = [turn for sample in samples for turn in sample.turns]
    assert {turn.kind for turn in turns} <= set(METRIC_OF_KIND)
    assert all(score(turn.kind, turn.answer, turn.answer) == 1.0 for turn in turns)
    assert all(score(turn.kind, "~", turn.answer) == 0.0 for turn in turns)
    with pytest.raises(KeyError):
        score("unheard of", "", "")
