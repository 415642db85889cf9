"""Second moments against their definition; shrinking and damping at their ends; the factor of the inverse."""

from __future__ import annotations

import pytest
import torch

from ernie_local.errors import ErnieLocalError
from ernie_quant.hessian import Moments, damped, inverse_factor, second_moments, shrink


def test_moments_are_the_weighted_mean_of_outer_products() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(37, 50, generator=generator)
    weights = torch.rand(37, generator=generator)
    expected = torch.zeros(50, 50, dtype=torch.float64)
    for token, weight in zip(tokens.double(), weights.double(), strict=True):
        expected += weight * torch.outer(token, token)
    expected /= weights.double().sum()
    moments = second_moments(tokens.split(10), weights, 50)
    assert torch.allclose(moments.matrix.double(), expected, atol=1e-6)
    # To rounding: no BLAS promises the same bits on both sides, and on an AMD EPYC they differ.
    assert torch.allclose(moments.matrix, moments.matrix.t(), atol=1e-6)
    assert moments.effective_tokens == pytest.approx(
        float(weights.sum()) ** 2 / float(weights.square().sum()), rel=1e-5
    )


def test_equal_weights_count_every_token_and_none_counts_none() -> None:
    tokens = torch.randn(12, 16)
    assert second_moments([tokens], torch.ones(12), 16).effective_tokens == pytest.approx(12)
    nothing = second_moments([tokens], torch.zeros(12), 16)
    assert nothing.effective_tokens == 0
    assert not nothing.matrix.any()
    assert second_moments([], torch.ones(0), 16).effective_tokens == 0


def test_shrinking_goes_from_the_prior_to_the_own_moments() -> None:
    own, prior = torch.eye(4), torch.full((4, 4), 2.0)
    assert torch.equal(shrink(Moments(own, 0.0), prior, 16), prior)
    assert torch.equal(shrink(Moments(own, 0.0), prior, 0), prior)
    assert torch.allclose(shrink(Moments(own, 1e9), prior, 16), own, atol=1e-6)
    assert torch.allclose(shrink(Moments(own, 16.0), prior, 16), (own + prior) / 2)


def test_damping_gives_columns_that_were_never_seen_the_mean() -> None:
    moments = torch.diag(torch.tensor([4.0, 0.0, 2.0]))
    assert torch.allclose(damped(moments, 0.01).diagonal(), torch.tensor([4.02, 2.0, 2.02]))
    assert torch.equal(damped(torch.zeros(3, 3)), torch.eye(3))
    with pytest.raises(ErnieLocalError, match="not finite"):
        damped(torch.full((3, 3), torch.nan))


def test_the_factor_is_that_of_the_inverse() -> None:
    tokens = torch.randn(200, 60, generator=torch.Generator().manual_seed(1))
    hessian = damped(second_moments([tokens], torch.ones(200), 60).matrix)
    factor = inverse_factor(hessian)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.t() @ factor, torch.linalg.inv(hessian), atol=1e-4)


def test_a_matrix_that_is_not_definite_is_damped_further_or_refused() -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))
    singular = torch.outer(direction, direction)
    factor = inverse_factor(singular)
    assert bool(factor.isfinite().all())
    with pytest.raises(ErnieLocalError, match="indefinite"):
        inverse_factor(-torch.eye(8))
