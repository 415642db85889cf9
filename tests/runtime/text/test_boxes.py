"""Boxes in answers: every spelling is found as it was written, and nothing else is."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.text.boxes import BOX_KEYS, FoundBox, Thousandths, find_boxes


def ordered(numbers: tuple[int, ...]) -> Thousandths:
    (left, right), (top, bottom) = sorted(numbers[::2]), sorted(numbers[1::2])
    return left, top, right, bottom


@st.composite
def corners(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """In order, as bare lists have to be."""
    left, right = draw(st.tuples(st.integers(0, 998), st.integers(0, 998)))
    top, bottom = draw(st.tuples(st.integers(0, 998), st.integers(0, 998)))
    return (*map(min, ((left, right), (top, bottom))), max(left, right) + 2, max(top, bottom) + 2)  # type: ignore[return-value]


SPELLINGS = [
    *(f'{{"{key}": BOX, "label": "sum"}}' for key in BOX_KEYS),
    '{"res": [{"text": "sum", "pos": BOX}]}',
    '{"sum": {"value": 3, "bbox_2d": BOX}}',
    '```json\n[\n {"bbox_2d": BOX, "label": "sum"}\n]\n```',
    'Here: {"label": "sum", "bbox": [PAIRS]} as you asked.',
    '{"label": "sum", "boxes": [BOX]}',
    '[{"label": "sum", "bbox_2d": BOX}, {"label": "date", "bbox_2d": [1, 2',
    "sum<|LOC_BEGIN|>TOKENS<|LOC_END|>",
    "The lines are:\nsum: TOKENS\nand no more",
]
BARE = ["BOX", "It is at BOX.", "bbox_2d: BOX", "The place, as asked: [BOX]", "TOKENS", "[PAIRS]"]


def written(spelling: str, box: tuple[int, ...]) -> str:
    left, top, right, bottom = box
    tokens = "".join(f"<|LOC_{number}|>" for number in box)
    pairs = f"[{left}, {top}], [{right},{bottom}]"
    return spelling.replace("BOX", json.dumps(list(box))).replace("TOKENS", tokens).replace("PAIRS", pairs)


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=15)
@given(box=corners())
def test_every_spelling_is_found_with_its_label(spelling: str, box: tuple[int, int, int, int]) -> None:
    assert find_boxes(written(spelling, box)) == ((FoundBox(box, "sum"),), ())


@pytest.mark.parametrize("spelling", BARE)
@settings(max_examples=15)
@given(box=corners())
def test_a_box_may_stand_alone(spelling: str, box: tuple[int, int, int, int]) -> None:
    found = find_boxes(written(spelling, box))
    assert [one.place for one in found.boxes] == [box]
    assert not found.refused


@given(box=st.tuples(*[st.integers(0, 1000)] * 4).filter(lambda box: box[0] != box[2] and box[1] != box[3]))
def test_reversed_corners_are_put_in_order(box: tuple[int, ...]) -> None:
    for spelling in ('{"bbox_2d": BOX}', "<|LOC_BEGIN|>TOKENS<|LOC_END|>"):
        assert find_boxes(written(spelling, box)).boxes[0].place == ordered(box)


def test_eight_location_tokens_are_the_corners_of_a_quadrilateral() -> None:
    tokens = "".join(f"<|LOC_{number}|>" for number in (10, 20, 110, 25, 108, 60, 8, 55))
    assert find_boxes(f"Kim Supply{tokens}").boxes == (FoundBox((8, 20, 110, 60), "Kim Supply"),)
    two = "<|LOC_SEP|>".join("".join(f"<|LOC_{n}|>" for n in box) for box in ((1, 2, 3, 4), (5, 6, 7, 8)))
    assert [box.place for box in find_boxes(two).boxes] == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_what_parts_boxes_in_a_sentence_is_no_label() -> None:
    first, second = ("".join(f"<|LOC_{n}|>" for n in box) for box in ((1, 2, 3, 4), (5, 6, 7, 8)))
    for text in (f"a cup{first}, a spoon{second}", f"a cup, {first}; a spoon: {second}"):
        assert [box.label for box in find_boxes(text).boxes] == ["a cup", "a spoon"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"bbox_2d": [1, 2, 3], "label": "sum"}', "sum: [1, 2, 3] has 3 numbers, a box has 4"),
        ('{"sum": {"box": []}}', "sum: its place is not a list of numbers"),
        ('{"bbox": ["a", 1, 2, 3]}', "a box: its place is not a list of numbers"),
        ('{"bbox": [true, 1, 2, 3]}', "a box: its place is not a list of numbers"),
        ('{"bbox": [NaN, 1, 2, 3]}', "a box: [nan, 1, 2, 3] is not a place"),
        ('{"bbox": [1e999, 1, 2, 3]}', "a box: [inf, 1, 2, 3] is not a place"),
        (f'{{"bbox": [{10**400}, 1, 2, 3]}}', "a box: [inf, 1, 2, 3] is not a place"),
        ('{"bbox": [5, 5, 5, 9]}', "a box: [5, 5, 5, 9] has no area"),
        (
            '{"pos": [1200, 5, 1400, 9]}',
            "a box: [1200, 5, 1400, 9] lies outside of the image, which goes from 0 to 1000",
        ),
        ("<|LOC_1|><|LOC_2|><|LOC_3|>", "a box: [1, 2, 3] has 3 numbers, a box has 4"),
        (
            "<|LOC_1|><|LOC_2|><|LOC_3|><|LOC_9999|><|LOC_4|>",
            "a box: [1, 2, 3, 9999, 4] has 5 numbers, a box has 4",
        ),
    ],
)
def test_what_is_no_box_is_told(text: str, told: str) -> None:
    assert find_boxes(text) == ((), (told,))


def test_a_box_over_the_edge_is_cut_there_and_told() -> None:
    found = find_boxes('{"bbox_2d": [-20, 900, 300, 1100], "label": "foot"}')
    assert found.boxes == (FoundBox((0, 900, 300, 1000), "foot"),)
    assert found.refused == (
        "foot: [-20, 900, 300, 1100] reaches over the edge of the image and is cut there",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The total is 84.84.",
        '{"rows": [[1, 2, 30, 40], [5, 6, 70, 80]], "years": [2001, 2002, 2003, 2004]}',
        '{"sums": [10, 20, 30, 40]}',
        "[10, 20, 30, 5]",
        "[2019, 2020, 2021, 2022]",
        "[0.1, 0.2, 0.3, 0.4]",
        "[1, 2, 3]",
        "[1, 2, 30, 40, 50]",
        '{"bbox_2d": null}',
        '{"bbox_2d": "none"}',
        '"sums": [10, 20, 30, 40], "more"',
    ],
)
def test_other_lists_are_no_boxes(text: str) -> None:
    assert find_boxes(text) == ((), ())


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('{"image": 2, "bbox_2d": [1, 2, 3, 4]}', [2]),
        ('{"img_idx": 0, "bbox_2d": [1, 2, 3, 4]}', [1]),
        ("Picture 2: [1, 2, 3, 4] and [5, 6, 7, 8]; in image 1: [9, 9, 10, 10]", [2, 2, 1]),
        ("[1, 2, 3, 4] in Picture 2", [None]),
        ('Picture 0: {"image": true, "bbox_2d": [1, 2, 3, 4]}', [None]),
    ],
)
def test_an_answer_may_name_the_image(text: str, numbers: list[int | None]) -> None:
    assert [box.image for box in find_boxes(text).boxes] == numbers


@given(st.text(st.sampled_from('[]{}",:<|LOC_123>bbox_2d \n'), max_size=60))
def test_any_text_can_be_searched(text: str) -> None:
    find_boxes(text)


def test_deep_and_long_answers_are_searched() -> None:
    assert find_boxes("[" * 500) == ((), ())
    told = r"not searched from letter \d+ on: too many brackets are never closed"
    boxes, refused = find_boxes('{"bbox_2d": [1, 2, 3, 4]}' + "[" * 50_000)
    assert [box.place for box in boxes] == [(1, 2, 3, 4)]
    assert len(refused) == 1
    assert re.fullmatch(told, refused[0])
    assert find_boxes('{"box":' * 900 + "[1,2,3,4]" + "}" * 900).boxes[0].place == (1, 2, 3, 4)
    many = json.dumps([{"bbox_2d": [1, 2, 3, 4]}] * 1200)
    assert len(find_boxes(many).boxes) == 1000
    assert find_boxes(many).refused == ("more than 1000 boxes: the rest is left out",)


def test_boxes_come_in_the_order_of_the_text() -> None:
    drawn = random.Random(3)
    boxes = [tuple(sorted(drawn.sample(range(1000), 4))) for _ in range(20)]
    texts = [written(drawn.choice(SPELLINGS[:8] + SPELLINGS[9:11]), box) for box in boxes]
    places = [box.place for box in find_boxes("\n".join(texts)).boxes if box.label == "sum"]
    assert places == [tuple(map(float, box)) for box in boxes]
