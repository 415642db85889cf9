"""What somebody may choose about paging, beside how much memory it has."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.experts.miss_rule import FETCH, MissRule


@dataclass(frozen=True, slots=True)
class PagingOptions:
    """miss_rule: for two memories, which pages that the upper one lacks are copied to it.

    small_below: a decoded token's experts of less router weight are served by their small pages where their
    others are not in memory; None never does. It changes what the model computes. looks_ahead: begin to read
    what the next layer's router would choose now, before it does.
    """

    miss_rule: MissRule = FETCH
    small_below: float | None = None
    looks_ahead: bool = False
