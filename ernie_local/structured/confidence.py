"""Tells how sure the model was of each value of an answer, from the probabilities of its tokens.

The confidence of a value is the product of the probabilities of the tokens that have at least one of its
letters, each among the tokens that the form allowed there, as the model gave them: before temperature and
filters. A token without an alternative counts 1. A number has no letter that ends it, so the probability that
it ends where it does, of all tokens that do not go on with it, counts too; so does the end of a text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ernie_local.structured.form import AnswerForm

_PLAIN_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Choice:
    """How a token was chosen. start, stop: its bytes in the answer; none where the answer ends.

    probability: of this token among those that the form allowed. ending: of all those together with which a
    number would not have gone on.
    """

    start: int
    stop: int
    probability: float
    ending: float


def named(path: str, name: str) -> str:
    """The path of the value `name` in the object at `path`, "" for the whole answer."""
    if not _PLAIN_NAME.fullmatch(name):
        return f"{path}[{json.dumps(name, ensure_ascii=False)}]"
    return f"{path}.{name}" if path else name


def find_confidence(form: AnswerForm, text: str, choices: Sequence[Choice]) -> dict[str, float]:
    """The confidence of each value in a whole answer, by its path, as in `lines[0].price`; "" is the whole.

    Values are those that hold no others: texts, numbers, true, false, null, [] and {}.
    """
    if form.kind == "text":
        return {"": math.prod(choice.probability for choice in choices)}
    places = [0, *accumulate(len(letter.encode()) for letter in text)]
    found: dict[str, float] = {}
    first = 0  # choices before it end before the value
    for path, start, stop, value in _values(text):
        while choices[first].stop <= places[start]:
            first += 1
        last = first
        while last < len(choices) and choices[last].start < places[stop]:
            last += 1
        product = math.prod(choice.probability for choice in choices[first:last])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and last < len(choices) and choices[last].start == places[stop]:
            product *= choices[last].ending
        found[path] = product
    return found


def _values(text: str) -> Iterator[tuple[str, int, int, Any]]:
    """Path, start, stop, and value, of each value that holds no others. text: JSON of the engine.

    Without recursion: an answer of a schema that refers to itself may be as deep as it is long.
    """
    decoder = json.JSONDecoder()
    open_paths: list[str] = []  # of the lists and objects around the place, and
    indices: list[int] = []  # which of their values comes next; -1 for objects
    position, path = 0, ""
    while True:
        opening = text[position]
        if opening in "[{" and text[position + 1] not in "]}":
            open_paths.append(path)
            indices.append(0 if opening == "[" else -1)
            position += 1
        else:
            value, stop = decoder.raw_decode(text, position)
            yield path, position, stop, value
            position = stop
            while open_paths and text[position] in "]}":
                position += 1
                open_paths.pop()
                indices.pop()
            if not open_paths:
                return
            position += len(", ")
            indices[-1] += indices[-1] >= 0
        path = open_paths[-1]
        if indices[-1] >= 0:
            path += f"[{indices[-1]}]"
        else:
            name, position = decoder.raw_decode(text, position)
            position += len(": ")
            path = named(path, name)
