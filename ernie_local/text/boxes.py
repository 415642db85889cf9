"""Finds the boxes that a model writes in its answers: in JSON, in prose, and as location tokens.

Places are thousandths of the width and the height of an image: [left, top, right, bottom]. The model has no
fixed form for them. It writes what the question asks for, such as `{"bbox_2d": [285, 235, 999, 652], "label":
"total"}`. What counts as a box:

- a list of four numbers, two pairs of them, or a list of such, under one of the keys `BOX_KEYS`, `boxes` or
  `bboxes`;
- a bare list of four numbers from 0 to 1000 that lie in order, left before right and top before bottom, where
  no other key says that it is something else;
- four location tokens, <|LOC_0|> to <|LOC_1000|>, or the eight of the corners of a quadrilateral.

Under a key and in tokens, reversed corners are put in order, and a box that reaches over the edge is cut at
it. What has another count of numbers, no area, or lies outside, is refused: `FoundBoxes.refused` tells which.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box", "pos")
_ALL_KEYS = (*BOX_KEYS, "boxes", "bboxes")
_LABEL_KEYS = ("label", "text", "name", "caption", "title", "object")
_IMAGE_KEYS = ("image", "picture", "page")  # count from 1; img_idx, of the published tool, counts from 0
_IMAGE_INDEX_KEY = "img_idx"
_FULL = 1000.0
_MOST_BOXES = 1000
_MOST_LABEL_CHARACTERS = 200

# Letters that may be read in vain: of brackets that are never closed each is tried. About a second.
_MOST_EFFORT, _DEEP_EFFORT = 20_000_000, 20_000

Thousandths: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

_JSON = json.JSONDecoder()
_OPENING = re.compile(r"[\[{]")
_KEY_BEFORE = re.compile(rf"(?:[\"']([^\"'\n]{{1,40}})[\"']|\b({'|'.join(BOX_KEYS)}))\s*[:=]\s*$")
_IMAGE_BEFORE = re.compile(r"\b(?:picture|image|page)\s*#?\s*(\d{1,6})\b", re.IGNORECASE)
_LOCATION = re.compile(r"<\|LOC_(\d{1,4})\|>")
# Tokens of one box stand together; a separator or anything else ends it.
_LOCATIONS = re.compile(r"(?:<\|LOC_\d{1,4}\|>\s*)+")
_WORDS_BEFORE = re.compile(r"([^\n<>|{}\[\]]{1,200})(?:<\|LOC_BEGIN\|>\s*)?$")


@dataclass(frozen=True, slots=True)
class FoundBox:
    """A box as an answer has it.

    place: thousandths, within 0 to 1000, left < right and top < bottom. label: what is in it; None where
    nothing says so. image: the number of the image, from 1; None where the answer names none.
    """

    place: Thousandths
    label: str | None = None
    image: int | None = None


class FoundBoxes(NamedTuple):
    """The boxes in the order of the text, and one line for each that is none, or was cut at the edge."""

    boxes: tuple[FoundBox, ...]
    refused: tuple[str, ...]


class _Place(NamedTuple):
    """A JSON value, its key, the object that has it, and the key that leads to that object."""

    value: object
    key: str | None
    owner: dict[str, object]
    way: str | None


class _Written(NamedTuple):
    """Something that may be a box, where it begins in the text."""

    start: int
    value: object
    label: str | None
    image: int | None
    has_key: bool


def find_boxes(text: str) -> FoundBoxes:
    """The boxes in an answer, at most 1,000; the docstring of this module says what counts as one."""
    boxes: list[FoundBox] = []
    refused: list[str] = []
    written = sorted([*_in_json(text, refused), *_in_locations(text)], key=lambda one: one.start)
    if not written:
        return FoundBoxes((), tuple(refused))
    mentioned = [(match.start(), int(match[1])) for match in _IMAGE_BEFORE.finditer(text)]
    for one in written:
        place, problem = read_box(one.value)
        if not one.has_key and (place is None or not _is_in_order(one.value)):
            continue
        shown = one.label or "a box"
        if problem is not None:
            refused.append(f"{shown}: {problem}")
        if place is None:
            continue
        if len(boxes) == _MOST_BOXES:
            refused.append(f"more than {_MOST_BOXES} boxes: the rest is left out")
            break
        image = one.image
        if image is None:
            image = next((number for start, number in reversed(mentioned) if start < one.start), None)
        boxes.append(FoundBox(place, one.label, image if image is None or image > 0 else None))
    return FoundBoxes(tuple(boxes), tuple(refused))


def read_box(value: object) -> tuple[Thousandths | None, str | None]:
    """A box of four numbers or two pairs; None with the reason where it is none.

    Corners are put in order, and what reaches over the edge is cut there: both a box and a reason then.
    """
    numbers = _flattened(value)
    if numbers is None:
        return None, "its place is not a list of numbers"
    shown = "[" + ", ".join(f"{number:.6g}" for number in numbers[:8]) + "]"
    if len(numbers) != 4:
        return None, f"{shown} has {len(numbers)} numbers, a box has 4"
    if not all(map(math.isfinite, numbers)):
        return None, f"{shown} is not a place"
    (left, right), (top, bottom) = sorted(numbers[::2]), sorted(numbers[1::2])
    cut = (max(left, 0.0), max(top, 0.0), min(right, _FULL), min(bottom, _FULL))
    if left == right or top == bottom:
        return None, f"{shown} has no area"
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        return None, f"{shown} lies outside of the image, which goes from 0 to {_FULL:.0f}"
    is_whole = cut == (left, top, right, bottom)
    return cut, None if is_whole else f"{shown} reaches over the edge of the image and is cut there"


def is_reversed(value: object) -> bool:
    """Whether a box has its right corner left of the other, or the lower one above."""
    numbers = _flattened(value) or []
    return len(numbers) == 4 and (numbers[0] > numbers[2] or numbers[1] > numbers[3])


def _in_json(text: str, refused: list[str]) -> Iterator[_Written]:
    """From all JSON values in the text, also from the whole ones within a value that was cut off."""
    position, effort = 0, 0
    while match := _OPENING.search(text, position):
        start = match.start()
        if effort > _MOST_EFFORT:
            refused.append(f"not searched from letter {start + 1} on: too many brackets are never closed")
            return
        try:
            value, end = _JSON.raw_decode(text, start)
        except json.JSONDecodeError as error:
            position = start + 1
            effort += error.pos - start
            continue
        except (ValueError, RecursionError):  # a number of too many digits, or too deep
            position = start + 1
            effort += _DEEP_EFFORT
            continue
        position = end
        before = _KEY_BEFORE.search(text, max(0, start - 60), start)
        yield from _in_value(value, start, None if before is None else before[1] or before[2])


def _in_value(whole: object, start: int, key: str | None) -> Iterator[_Written]:
    """From a JSON value that begins at `start`; key: what stands before it."""
    # A stack instead of calls, as a value may be nested as deeply as its text is long.
    waiting: list[_Place] = [_Place(whole, key, {}, None)]
    while waiting:
        value, key, owner, way = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(_Place(one, name, value, key or way) for name, one in reversed(value.items()))
        elif isinstance(value, list):
            has_key = key in _ALL_KEYS
            numbers = _flattened(value)
            if (numbers is not None and (has_key or key is None)) or (has_key and _holds_no_box(value)):
                yield _Written(start, value, _label(owner, way), _image_number(owner), has_key)
            elif numbers is None:
                waiting.extend(_Place(one, key, owner, way) for one in reversed(value))


def _holds_no_box(value: list[object]) -> bool:
    return not any(isinstance(one, list | dict) for one in value)


def _in_locations(text: str) -> Iterator[_Written]:
    for match in _LOCATIONS.finditer(text):
        numbers = [int(number) for number in _LOCATION.findall(match[0])]
        corners: list[object] = [*numbers]
        if len(numbers) == 8:
            across, down = numbers[::2], numbers[1::2]
            corners = [min(across), min(down), max(across), max(down)]
        before = _WORDS_BEFORE.search(text, max(0, match.start() - 220), match.start())
        label = None if before is None else before[1].strip(" \t:-,;")[:_MOST_LABEL_CHARACTERS] or None
        yield _Written(match.start(), corners, label, None, True)


def _flattened(value: object) -> list[float] | None:
    """The numbers of a flat list, or of two pairs; None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    if len(value) == 2 and all(isinstance(one, list) and len(one) == 2 for one in value):
        value = [*value[0], *value[1]]
    numbers: list[float] = []
    for one in value:
        if isinstance(one, bool) or not isinstance(one, int | float):
            return None
        try:
            numbers.append(float(one))
        except OverflowError:
            numbers.append(math.inf)
    return numbers


def _is_in_order(value: object) -> bool:
    """Whether a bare list can only be meant as a box."""
    numbers = _flattened(value)
    assert numbers is not None
    left, top, right, bottom = numbers
    return 0 <= left < right <= _FULL and 0 <= top < bottom <= _FULL and max(numbers) > 1


def _label(owner: dict[str, object], way: str | None) -> str | None:
    """What the object beside a box says of it, else the key that leads to the object."""
    for key in _LABEL_KEYS:
        value = owner.get(key)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())[:_MOST_LABEL_CHARACTERS]
    return None if way is None else way[:_MOST_LABEL_CHARACTERS]


def _image_number(owner: dict[str, object]) -> int | None:
    for key in (*_IMAGE_KEYS, _IMAGE_INDEX_KEY):
        value = owner.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value + (key == _IMAGE_INDEX_KEY)
    return None
