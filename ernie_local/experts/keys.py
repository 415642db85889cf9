"""Names the pages of routed experts, and the unit in which pages are placed in memory.

A module of its own, because almost every part of paging needs it and none of the others.
"""

from __future__ import annotations

from typing import NamedTuple

from ernie_local.config import Bank

UNIT_BYTES = 4096  # pages begin at multiples of it, in files and in memory


class ExpertKey(NamedTuple):
    """One page of a routed expert of the model.

    is_small: the second, small page that experts have in some checkpoints.
    """

    layer_id: int
    bank: Bank
    expert_id: int
    is_small: bool = False
