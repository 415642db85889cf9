"""Scores answers by measures from the literature; each kind of question takes one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Literal

import numpy

from ernie_local.text.boxes import Thousandths, find_boxes

Metric = Literal["exact", "anls", "relaxed", "box", "json"]

# Small images have one answer, given as it is printed. Counts and names elsewhere have to be exact too.
_EXACT = (
    "total, date, number, line item, vendor, form field, table cell, bar value, bar highest, bar lowest, "
    "line point, line extreme, document count, chart extreme, chart count, absent field, month in words, "
    "currency in words, small count, small difference, clip number, clip time, clip word, small print"
).split(", ")
# Pages and scans: as DocVQA is scored; and long answers, of which "given" ones come from the user's folder.
_ANLS = (
    "document total, document date, document number, document name, document field, document item, "
    "document cell, transcript, text, given"
).split(", ")
_RELAXED = ("chart value", "chart difference")  # as ChartQA is scored
# What each kind of turn is scored by. A kind that is not listed here cannot be scored: KeyError.
METRIC_OF_KIND: dict[str, Metric] = {
    **dict.fromkeys(_EXACT, "exact"),
    **dict.fromkeys(_ANLS, "anls"),
    **dict.fromkeys(_RELAXED, "relaxed"),
    "place": "box",
    "json fields": "json",
}
LEAST_OVERLAP = 0.5
ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_UNITS = "$€£% "


def exact_match(answer: str, expected: str) -> float:
    """1.0 if both are the same but for spaces around them, else 0.0.

    Source: the exact match of SQuAD (Rajpurkar et al., arXiv 1606.05250), without its leniency about case,
    articles and punctuation: a printed number or name has one spelling.
    """
    return float(answer.strip() == expected.strip())


def anls(answer: str, expected: str) -> float:
    """1 - edit distance / length of the longer text, 0.0 where that is under ANLS_THRESHOLD.

    Case and runs of spaces do not count.

    Source: average normalised Levenshtein similarity, Biten et al., "Scene Text Visual Question Answering"
    (arXiv 1905.13648), threshold 0.5; the score of DocVQA. The average over questions is the caller's.
    """
    first, second = (" ".join(text.lower().split()) for text in (answer, expected))
    longest = max(len(first), len(second))
    similarity = 1.0 - edit_distance(first, second) / longest if longest else 1.0
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def relaxed_accuracy(answer: str, expected: str) -> float:
    """1.0 if a number lies within 5 % of the expected one, or text is the same but for case; else 0.0.

    Numbers may carry a currency or a percent sign and commas between thousands. An expected 0 must be exact.
    Source: Masry et al., "ChartQA" (arXiv 2203.10244), after Methani et al., "PlotQA" (arXiv 1909.00997).
    """
    number, wanted = _number(answer), _number(expected)
    if number is None or wanted is None:
        return exact_match(answer.lower(), expected.lower())
    return float(abs(number - wanted) <= RELATIVE_TOLERANCE * abs(wanted))


def overlap(first: Thousandths, second: Thousandths) -> float:
    """Area that both boxes have over the area that either has (intersection over union)."""
    width, height = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    common = max(0.0, width) * max(0.0, height)
    areas = ((right - left) * (bottom - top) for left, top, right, bottom in (first, second))
    return common / (sum(areas) - common)


def box_overlap(answer: str, expected: str) -> float:
    """The overlap of the first box of the answer with the expected one; 0.0 without a box."""
    found, wanted = find_boxes(answer).boxes, find_boxes(expected).boxes
    return overlap(found[0].place, wanted[0].place) if found else 0.0


def box_match(answer: str, expected: str) -> float:
    """1.0 if the first box of the answer overlaps the expected one by LEAST_OVERLAP, else 0.0."""
    return float(box_overlap(answer, expected) >= LEAST_OVERLAP)


def json_match(answer: str, expected: str) -> float:
    """1.0 if the answer is the expected JSON: the same keys and values, in any order and spacing."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return 0.0
    return float(found == json.loads(expected))


METRICS: dict[Metric, Callable[[str, str], float]] = {
    "exact": exact_match,
    "anls": anls,
    "relaxed": relaxed_accuracy,
    "box": box_match,
    "json": json_match,
}


def score(kind: str, answer: str, expected: str) -> float:
    """From 0.0 to 1.0 by the measure of `kind`. KeyError for a kind that METRIC_OF_KIND does not have."""
    return METRICS[METRIC_OF_KIND[kind]](answer, expected)


def edit_distance(first: str, second: str) -> int:
    """Fewest characters to insert, delete or replace that make one text of the other (Levenshtein 1966)."""
    codes = numpy.array([ord(character) for character in second], dtype=numpy.int64)
    steps = numpy.arange(len(second) + 1)
    row = steps.copy()
    for index, character in enumerate(first):
        best = row + 1  # a character of `first` left out
        best[0] = index + 1
        best[1:] = numpy.minimum(best[1:], row[:-1] + (codes != ord(character)))
        # Insertions go along the row: the running minimum of what each place costs less its own steps.
        row = numpy.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def _number(text: str) -> float | None:
    bare = text.strip().strip(_UNITS)
    return float(bare.replace(",", "")) if _NUMBER.fullmatch(bare) else None
