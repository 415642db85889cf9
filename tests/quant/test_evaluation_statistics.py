"""Divergence, intervals and tests of difference, each against another way to reckon the same."""

from __future__ import annotations

from itertools import product
from random import Random

import numpy
import pytest
import torch
from torch.nn import functional

from ernie_quant.evaluation.comparison import divergence
from ernie_quant.evaluation.summary import bootstrap_ratio, mcnemar, quantiles


def test_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (3 * torch.randn(7, 50, generator=generator) for _ in range(2))
    expected = functional.kl_div(
        second.double().log_softmax(-1), first.double().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert torch.allclose(divergence(first, second), expected, rtol=1e-12)
    assert not torch.allclose(divergence(second, first), expected, rtol=1e-2)


def test_divergence_near_zero_is_half_the_square_and_of_the_same_is_zero() -> None:
    logits = torch.zeros(1, 2)
    assert float(divergence(logits, logits)) == 0.0
    # Both even but for a logit of d: KL = d^2 / 8 to second order; float32 would round it to nothing.
    assert float(divergence(logits, torch.tensor([[0.0, 1e-5]]))) == pytest.approx(1e-10 / 8, rel=1e-3)


def test_bootstrap_draws_documents_as_the_textbook_does() -> None:
    sums, counts = [3.0, 0.0, 8.0, 2.0, 5.0], [4, 1, 9, 2, 7]
    generator = numpy.random.default_rng(5)
    drawn = []
    for _ in range(2000):
        chosen = [int(index) for index in generator.integers(5, size=5)]
        drawn.append(sum(sums[index] for index in chosen) / sum(counts[index] for index in chosen))
    drawn.sort()
    found = bootstrap_ratio(sums, counts, seed=5)
    assert found.value == 18 / 23
    assert drawn[48] <= found.low <= drawn[52]
    assert drawn[1947] <= found.high <= drawn[1951]
    many = [float(index) ** 1.5 for index in range(40)]
    assert bootstrap_ratio(many, [1] * 40, seed=5) != bootstrap_ratio(many, [1] * 40, seed=6)


def test_positions_of_one_document_are_no_independent_ones() -> None:
    """100 positions, all alike within each of 10 documents, are as sure as 10, not as 100."""
    random = Random(0)
    values = [random.random() for _ in range(10)]
    clustered = bootstrap_ratio([10 * value for value in values], [10] * 10)
    ten = bootstrap_ratio(values, [1] * 10)
    hundred = bootstrap_ratio([value for value in values for _ in range(10)], [1] * 100)
    assert clustered.high - clustered.low == pytest.approx(ten.high - ten.low)
    assert clustered.high - clustered.low > 2.5 * (hundred.high - hundred.low)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = numpy.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = bootstrap_ratio(generator.exponential(size=60), numpy.ones(60))
        covered += found.low <= 1.0 <= found.high
    assert 86 <= covered <= 99


def test_nothing_counted_has_no_mean() -> None:
    assert bootstrap_ratio([1.0, 2.0], [2, 0]).value == 0.5
    with pytest.raises(ValueError, match="nothing"):
        bootstrap_ratio([1.0], [0])


@pytest.mark.parametrize("flips", [(0, 0), (0, 6), (1, 5), (3, 3), (7, 2)])
def test_mcnemar_counts_all_tosses_that_are_as_uneven(flips: tuple[int, int]) -> None:
    tosses = list(product((0, 1), repeat=sum(flips)))
    uneven = abs(flips[0] - flips[1])
    as_uneven = sum(abs(2 * sum(each) - len(each)) >= uneven for each in tosses)
    assert mcnemar(*flips) == mcnemar(*reversed(flips)) == as_uneven / len(tosses)


def test_mcnemar_by_hand_and_with_many_flips() -> None:
    assert mcnemar(1, 5) == 2 * (1 + 6) / 64
    assert 0 < mcnemar(2000, 3000) < 1e-40


def test_quantiles_lie_between_the_sorted_values() -> None:
    assert quantiles([4.0, 1.0, 3.0, 2.0, 5.0], (0.5, 0.9)) == pytest.approx([3.0, 4.6])
