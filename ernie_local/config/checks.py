"""Rules that tie several keys together and hold in both layouts: heads, and experts per token.

Owns the arithmetic between sizes. Knows nothing of where the keys stand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ernie_local.config.banks import ExpertBank
from ernie_local.config.keys import Keys


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads: how many ask, how many are asked, and how wide one is."""

    query: int
    key_value: int
    dim: int


def read_heads(keys: Keys, hidden_size: int, query: int | None = None, key_value: int | None = None) -> Heads:
    """num_attention_heads, num_key_value_heads and head_dim; `query` and `key_value` are defaults.

    A key-value count of null means one for each query head; without head_dim it is
    hidden_size // num_attention_heads, and need not divide evenly.
    """
    num_query = keys.integer("num_attention_heads", query)
    if keys.is_null("num_key_value_heads") or (key_value is None and not keys.has("num_key_value_heads")):
        key_value = num_query
    num_key_value = keys.integer("num_key_value_heads", key_value)
    if num_query % num_key_value:
        raise keys.refuse(
            "num_key_value_heads",
            f"is {num_key_value}, which does not divide num_attention_heads {num_query}",
        )
    head_dim = keys.integer("head_dim", hidden_size // num_query or None)
    if head_dim % 2:
        raise keys.refuse("head_dim", f"is {head_dim}, an even width is needed for the position encoding")
    return Heads(num_query, num_key_value, head_dim)


def check_experts(keys: Keys, banks: Iterable[ExpertBank], experts_per_token: int) -> None:
    """Each bank needs at least as many experts as one token asks for."""
    for bank in banks:
        if experts_per_token > bank.num_experts:
            raise keys.refuse(
                "moe_k", f"is {experts_per_token}, but each bank has {bank.num_experts} experts"
            )


def check_vision_heads(keys: Keys, hidden_size: int, num_heads: int) -> None:
    """The vision tower cuts its width evenly, and each head into quarters for rows and columns."""
    if hidden_size % num_heads or hidden_size // num_heads % 4:
        raise keys.refuse(
            "num_heads", f"is {num_heads}, which does not cut hidden_size {hidden_size} into multiples of 4"
        )
    keys.same_as("head_dim", hidden_size // num_heads, "hidden_size / num_heads")
