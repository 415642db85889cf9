"""Chooses how plain torch on a GPU cuts attention into pieces, and counts what one takes, without torch."""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT_BYTES = 4
_MOST_SCORES = 1 << 20  # of all heads at a time: 4 MiB in float32
# Cached tokens at a time: fewer make small products, of more the converted keys take more than the scores.
_LEAST_TOKENS, _MOST_TOKENS, _STEP = 512, 2048, 64


@dataclass(frozen=True, slots=True)
class AttentionPiece:
    """New tokens and cached ones whose scores are computed at a time, and the heads that do it."""

    num_new: int
    num_cached: int
    heads: int
    kv_heads: int
    head_dim: int

    @staticmethod
    def of(heads: int, kv_heads: int, head_dim: int, num_new: int, num_all: int) -> AttentionPiece:
        """The largest piece of `num_new` tokens that attend to `num_all`, themselves included."""
        new = max(1, min(num_new, _MOST_SCORES // (heads * _LEAST_TOKENS)))
        cached = max(_LEAST_TOKENS, _MOST_SCORES // (heads * new) // _STEP * _STEP)
        return AttentionPiece(new, min(num_all, _MOST_TOKENS, cached), heads, kv_heads, head_dim)

    @property
    def num_bytes(self) -> int:
        """Memory of one piece: scores and what masks them, keys or values in float32, and for each new token
        its queries and the sums so far, with largest scores and totals, old and new."""
        rows = self.heads * self.num_new
        scores = rows * self.num_cached * _FLOAT_BYTES + 2 * self.num_new * self.num_cached
        states = self.kv_heads * self.num_cached * self.head_dim * _FLOAT_BYTES
        return scores + states + rows * (2 * self.head_dim + 8) * _FLOAT_BYTES
