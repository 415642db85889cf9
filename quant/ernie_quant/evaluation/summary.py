"""Computes the figures of an evaluation from its comparisons, with bootstrap intervals and McNemar's test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy
from numpy.typing import ArrayLike, NDArray

from ernie_calibration.scoring import METRIC_OF_KIND, Metric
from ernie_local.config import Bank, TextConfig
from ernie_quant.evaluation.comparison import Comparison

_SHARE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_ratio(sums: ArrayLike, counts: ArrayLike, seed: int = 0) -> Estimate:
    """sum(sums) / sum(counts), with an interval from resampling whole documents.

    sums, counts: (documents,), the contributions of each document. Positions of one document depend on each
    other, so resampling single positions would give too narrow an interval (Efron's percentile bootstrap, of
    clusters). ValueError if all counts are 0.
    """
    totals = numpy.asarray(sums, dtype=numpy.float64)
    weights = numpy.asarray(counts, dtype=numpy.float64)
    totals, weights = totals[weights > 0], weights[weights > 0]
    if not len(weights):
        raise ValueError("nothing to take a mean of")
    drawn = numpy.random.default_rng(seed).integers(len(weights), size=(_RESAMPLES, len(weights)))
    ratios = totals[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    low, high = numpy.quantile(ratios, [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    return Estimate(float(totals.sum() / weights.sum()), float(low), float(high))


def quantiles(values: ArrayLike, shares: tuple[float, ...]) -> list[float]:
    """The values below which these shares of all values lie."""
    found: NDArray[numpy.float64] = numpy.quantile(numpy.asarray(values, dtype=numpy.float64), shares)
    return [float(value) for value in found]


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two models answer the same questions equally well.

    only_first, only_second: questions that only one of them got right. Under the hypothesis each is a coin
    toss (McNemar 1947, with the binomial in place of chi squared).
    """
    num_tosses = only_first + only_second
    tail = sum(comb(num_tosses, heads) for heads in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << num_tosses))


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(reference || checkpoint) in nats, and whether both have the same most likely token."""

    positions: int
    """Positions where an answer is written, its end among them."""
    mean: Estimate
    """In nats, over the full vocabulary."""
    median: float
    percent_90: float
    percent_99: float
    top1: Estimate
    """Share of positions where both find the same token most likely."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy answers to questions; long turns are left out."""

    questions: int
    reference_exact: int
    """Answers of the reference that are right to the letter."""
    exact: int
    """Answers of the checkpoint that are right to the letter."""
    exact_share: Estimate | None
    """None of 0 questions."""
    right_to_wrong: int
    wrong_to_right: int
    p_value: float
    """Of McNemar's exact test on these two."""


@dataclass(frozen=True, slots=True)
class Zoom:
    """The same turns, asked once more in the Thinking template with the zoom tool."""

    reference_score: float
    score: float
    reference_gain: float
    """What the tool gains: the reference's score with it, less the one without."""
    gain: float
    """The same of the checkpoint."""
    reference_zoomed: int
    """Turns in which the tool has shown the reference a part of the image."""
    zoomed: int
    """The same of the checkpoint."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of turn. The scores are means of `metric`, from 0 to 1."""

    kind: str
    metric: Metric
    turns: int
    positions: int
    divergence: float
    top1: float
    reference_score: float
    score: float
    reference_overlap: float | None
    """Of boxes: the mean intersection over union of the reference's with the right ones, 0 where it names
    none; null for other measures."""
    overlap: float | None
    """The same of the checkpoint."""
    zoom: Zoom | None
    """Figures with the zoom tool; null for kinds that need no closer look."""


@dataclass(frozen=True, slots=True)
class RoutingAgreement:
    """The share of chosen experts that the reference also chose, for one bank in one layer."""

    layer: int
    bank: Bank
    tokens: int
    agreement: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything about one checkpoint. routing_agreement: of all layers and banks; None without any."""

    divergence: Divergence
    answers: Answers
    tasks: tuple[Task, ...]
    routing: tuple[RoutingAgreement, ...]
    routing_agreement: float | None


def summarize_comparisons(comparisons: Sequence[Comparison], text: TextConfig, seed: int = 0) -> Summary:
    """Figures of at least one comparison. text: of the model; seed: of the resampling."""
    moe_layers = [layer_id for layer_id, has_experts in enumerate(text.moe_layers) if has_experts]
    documents = list(dict.fromkeys(each.document for each in comparisons))
    places = {document: place for place, document in enumerate(documents)}

    def by_document(chosen: Sequence[Comparison], sums: Sequence[float], counts: Sequence[int]) -> Estimate:
        rows = numpy.array([places[each.document] for each in chosen])
        size = len(documents)
        return bootstrap_ratio(
            numpy.bincount(rows, sums, minlength=size), numpy.bincount(rows, counts, minlength=size), seed
        )

    positions = [len(each.divergence) for each in comparisons]
    pooled = numpy.concatenate([each.divergence for each in comparisons])
    median, percent_90, percent_99 = quantiles(pooled, (0.5, 0.9, 0.99))
    divergence = Divergence(
        positions=len(pooled),
        mean=by_document(comparisons, [float(each.divergence.sum()) for each in comparisons], positions),
        median=median,
        percent_90=percent_90,
        percent_99=percent_99,
        top1=by_document(comparisons, [int(each.agrees.sum()) for each in comparisons], positions),
    )
    questions = [each for each in comparisons if each.is_question]
    right = [each.exact for each in questions]
    lost, won = right.count((True, False)), right.count((False, True))
    answers = Answers(
        questions=len(questions),
        reference_exact=sum(before for before, _ in right),
        exact=sum(after for _, after in right),
        exact_share=by_document(questions, [after for _, after in right], [1] * len(right))
        if right
        else None,
        right_to_wrong=lost,
        wrong_to_right=won,
        p_value=mcnemar(lost, won),
    )
    same = numpy.sum([each.same_experts for each in comparisons], axis=0)  # (MoE layers, banks)
    tokens = numpy.sum([each.bank_tokens for each in comparisons], axis=0)  # (banks,)
    routing = tuple(
        RoutingAgreement(layer_id, bank.name, int(tokens[column]), float(same[row, column] / tokens[column]))
        for row, layer_id in enumerate(moe_layers)
        for column, bank in enumerate(text.banks)
        if tokens[column]
    )
    agreement = float(same.sum() / (tokens.sum() * len(moe_layers))) if moe_layers else None
    return Summary(divergence, answers, _tasks(comparisons), routing, agreement)


def _tasks(comparisons: Sequence[Comparison]) -> tuple[Task, ...]:
    tasks = []
    for kind in sorted({each.turn.kind for each in comparisons}):
        chosen = [each for each in comparisons if each.turn.kind == kind]
        before, after = _means([each.scores for each in chosen])
        overlaps = [each.overlaps for each in chosen if each.overlaps is not None]
        overlap_before, overlap_after = _means(overlaps) if overlaps else (None, None)
        pooled = numpy.concatenate([each.divergence for each in chosen])
        tasks.append(
            Task(
                kind=kind,
                metric=METRIC_OF_KIND[kind],
                turns=len(chosen),
                positions=len(pooled),
                divergence=float(pooled.mean()),
                top1=float(numpy.concatenate([each.agrees for each in chosen]).mean()),
                reference_score=before,
                score=after,
                reference_overlap=overlap_before,
                overlap=overlap_after,
                zoom=_zoom(chosen),
            )
        )
    return tuple(tasks)


def _zoom(chosen: Sequence[Comparison]) -> Zoom | None:
    """Figures of those that were asked with the zoom tool too; None without any."""
    asked = [each for each in chosen if each.zoomed is not None]
    if not asked:
        return None
    plain_before, plain_after = _means([each.scores for each in asked])
    before, after = _means([scores for each in asked if (scores := each.zoomed_scores) is not None])
    looks = [tuple(answer.has_zoomed for answer in each.zoomed) for each in asked if each.zoomed is not None]
    reference_zoomed, zoomed = (sum(pair[i] for pair in looks) for i in (0, 1))
    return Zoom(before, after, before - plain_before, after - plain_after, reference_zoomed, zoomed)


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The means of the first and of the second numbers."""
    first, second = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
    return first, second
