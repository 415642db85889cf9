"""Computes second moments of a matrix's inputs, draws them toward a prior, and makes them safe to invert.

The error of a quantized matrix over its inputs x is trace(E H E^T) with H the mean of x x^T (Frantar et al.,
"GPTQ", 2022).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ernie_local.errors import ErnieLocalError

Tensor = torch.Tensor
DAMPING = 0.01  # of the mean of the diagonal
_MOST_DAMPING = 0.1


@dataclass(frozen=True, slots=True)
class Moments:
    """`matrix`: (columns, columns) float32, weights of mean 1; `effective_tokens`: (sum w)^2 / sum w^2."""

    matrix: Tensor
    effective_tokens: float


def second_moments(tokens: Iterable[Tensor], weights: Tensor, columns: int) -> Moments:
    """tokens: (tokens, columns) in parts of any length; weights: (tokens,) of all of them, not negative.

    Without tokens, or with weights of 0, the result is zeros and 0 effective tokens.
    """
    moments = torch.zeros(columns, columns)
    total = float(weights.double().sum())
    if total == 0.0:
        return Moments(moments, 0.0)
    factors = (weights.float() / total).sqrt()
    # The matrix is symmetric: blocks below its diagonal are not computed, but copied from above.
    step = -(-columns // 4)
    blocks = [(start, start + step) for start in range(0, columns, step)]
    done = 0
    for part in tokens:
        rows = part.float() * factors[done : done + part.shape[0], None]
        for start, stop in blocks:
            moments[start:stop, start:].addmm_(rows[:, start:stop].t(), rows[:, start:])
        done += part.shape[0]
    assert done == weights.numel(), (done, weights.shape)
    for start, stop in blocks:
        moments[stop:, start:stop] = moments[start:stop, stop:].t()
    return Moments(moments, total**2 / float(weights.double().square().sum()))


def shrink(own: Moments, prior: Tensor, strength: float) -> Tensor:
    """Mix `own` and `prior` as if the prior came from `strength` tokens.

    An expert with few tokens gets mostly the prior, one with many mostly its own moments.
    """
    if own.effective_tokens == 0.0:
        return prior
    share = own.effective_tokens / (own.effective_tokens + strength)
    return prior.lerp(own.matrix, share)


def damped(moments: Tensor, share: float = DAMPING) -> Tensor:
    """A copy with `share` of the diagonal's mean added to it; columns without data get the whole mean."""
    diagonal = moments.diagonal()
    mean = diagonal.mean()
    if not bool(torch.isfinite(mean)):
        raise ErnieLocalError(
            f"second moments of {moments.shape[0]} columns are not finite",
            "an activation overflowed, or an earlier weight is damaged",
            "verify the source checkpoint",
        )
    if float(mean) == 0.0:
        return torch.eye(moments.shape[0])
    result = moments.clone()
    added = torch.where(diagonal > 0, share * mean, mean)
    result.diagonal().add_(added)
    return result


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with inverse(hessian) = U^T U; damped ten times more if it is not definite.

    It uses the Cholesky factor of the reversed matrix: half the work of inverting and factoring.
    """
    share = DAMPING
    flipped = hessian.flip(0, 1)
    while True:
        lower, failed = torch.linalg.cholesky_ex(flipped)
        if int(failed) == 0:
            break
        if share > _MOST_DAMPING:
            raise ErnieLocalError(
                f"second moments of {hessian.shape[0]} columns stay indefinite at damping {share / 10:g}",
                "inputs of the matrix are not finite, or of very different sizes",
                "verify the source checkpoint, or calibrate on more samples",
            )
        flipped = damped(hessian, share).flip(0, 1)
        share *= 10
    upper = lower.flip(0, 1)  # hessian = upper upper^T
    identity = torch.eye(hessian.shape[0])
    factor: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return factor
