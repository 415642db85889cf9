"""Made-up routing as traces: how a model may choose its experts, from all alike to a hot set that moves on.

Decode of text experts alone, in the original's proportions (64 experts, six to a
token) with fewer layers. The same seed gives the same trace. Knows nothing of policies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ernie_local.experts.keys import ExpertKey
from ernie_local.replay.trace import Forward, Trace

LAYERS, EXPERTS, TOP_K = 9, 64, 6
PAGE_BYTES = 1 << 20
Weights = NDArray[np.float64]


def uniform(random: np.random.Generator, num_tokens: int) -> Weights:
    """(tokens, layers, experts): every expert alike."""
    return np.ones((num_tokens, LAYERS, EXPERTS))


def zipf(random: np.random.Generator, num_tokens: int, exponent: float = 0.8) -> Weights:
    """The n-th expert of a layer is chosen 1 / n^exponent as readily as the first, in every layer others."""
    weights: Weights = np.broadcast_to(_ranked(random, exponent), (num_tokens, LAYERS, EXPERTS))
    return weights


def phases(random: np.random.Generator, num_tokens: int, length: int = 128, exponent: float = 1.0) -> Weights:
    """As `zipf`, and after every `length` tokens other experts are the ready ones."""
    drawn = [_ranked(random, exponent) for _ in range(-(-num_tokens // length))]
    return np.concatenate([np.broadcast_to(one, (length, LAYERS, EXPERTS)) for one in drawn])[:num_tokens]


def _ranked(random: np.random.Generator, exponent: float) -> Weights:
    ranks = np.stack([random.permutation(EXPERTS) for _ in range(LAYERS)])
    weights: Weights = np.power(1.0 + ranks, -exponent)
    return weights


def make_trace(
    weights: Callable[[np.random.Generator, int], Weights],
    num_tokens: int = 1000,
    seed: int = 0,
    pull: float = 1.0,
) -> Trace:
    """Experts drawn without putting back, by these weights; what the last token chose weighs `pull` times."""
    random = np.random.default_rng(seed)
    logs = np.log(weights(random, num_tokens))
    noise = random.gumbel(size=logs.shape)
    forwards = []
    last = np.zeros((LAYERS, EXPERTS))
    for token in range(num_tokens):
        ids = np.argsort(-(logs[token] + noise[token] + np.log(pull) * last), axis=-1)[:, :TOP_K]
        last[:] = 0
        np.put_along_axis(last, ids, 1, axis=-1)
        shares = np.full(ids.shape, 1 / TOP_K, np.float32)
        forwards.append(Forward(np.zeros(1, np.bool_), ids.astype(np.uint16), shares))
    pages = {
        ExpertKey(layer_id, "text", expert_id): PAGE_BYTES
        for layer_id in range(1, LAYERS + 1)
        for expert_id in range(EXPERTS)
    }
    return Trace("synthetic", TOP_K, pages, tuple(forwards))
