"""Divergence of distributions, and how sure a mean or a difference is: pure functions on numbers.

Knows nothing of models or turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy
import torch
from numpy.typing import ArrayLike, NDArray

_SHARE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(reference || other) in nats of each row of logits: (rows, vocab) each -> (rows,) float64.

    In float64, as near zero the terms of float32 leave more rounding than divergence.
    """
    first = torch.log_softmax(reference.double(), dim=-1)  # (rows, vocab)
    second = torch.log_softmax(other.double(), dim=-1)
    return (first.exp() * (first - second)).sum(dim=-1).clamp(min=0.0)


def bootstrap_ratio(sums: ArrayLike, counts: ArrayLike, seed: int = 0) -> Estimate:
    """sum(sums) / sum(counts), with an interval from drawing whole documents anew.

    sums, counts: (documents,), what each document adds to either. Positions of one document depend on each
    other, so that drawing them one by one would promise too much (Efron's percentile bootstrap, of clusters).
    ValueError where no document counts.
    """
    totals = numpy.asarray(sums, dtype=numpy.float64)
    weights = numpy.asarray(counts, dtype=numpy.float64)
    totals, weights = totals[weights > 0], weights[weights > 0]
    if not len(weights):
        raise ValueError("nothing to take a mean of")
    generator = numpy.random.default_rng(seed)
    ratios = numpy.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        drawn = generator.integers(len(weights), size=len(weights))
        ratios[resample] = totals[drawn].sum() / weights[drawn].sum()
    low, high = numpy.quantile(ratios, [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    return Estimate(float(totals.sum() / weights.sum()), float(low), float(high))


def quantiles(values: ArrayLike, shares: tuple[float, ...]) -> list[float]:
    """The values below which these shares of all lie."""
    found: NDArray[numpy.float64] = numpy.quantile(numpy.asarray(values, dtype=numpy.float64), shares)
    return [float(value) for value in found]


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p that two answerers of the same questions are equally good, exactly.

    only_first, only_second: questions that one of them alone got right. Under the hypothesis each of them was
    the toss of a coin (McNemar 1947, with the binomial in place of chi squared).
    """
    num_tosses = only_first + only_second
    tail = sum(comb(num_tosses, heads) for heads in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << num_tosses))
