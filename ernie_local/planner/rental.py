"""Reproduces a published page's capacity rule for rented servers, and counts what the rule leaves out.

The page says how many sessions with the full context a server holds at once. Its rule is taken as it is, with
its units: nominal GB of GPUs as GiB, and the decimal GB of the bfloat16 checkpoint as GiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.errors import UsageError, parameter
from ernie_local.planner.terms import NOTHING, Amount, Term
from ernie_local.sizes import GIB

_USABLE_SHARE = 0.9
_GIB_A_GPU = 2.5  # taken off for each GPU
_PARAMETERS = 29e9
SESSION_TOKENS = 131_072
_SESSION_GIB = 7.0  # of keys and values of so many tokens in 16 bits
_WEIGHT_GIB = {"4": _PARAMETERS / 2 / GIB, "8": _PARAMETERS / GIB, "16": 58.84}


@dataclass(frozen=True, slots=True)
class RentedServer:
    """num_gpus equal GPUs, each sold with `gib_a_gpu`."""

    num_gpus: int
    gib_a_gpu: float


def published_sessions(server: RentedServer, bits: str) -> float:
    """`max_concurrency` as on the page; negative where weights do not fit. UsageError for other bits."""
    if bits not in _WEIGHT_GIB:
        raise UsageError(
            f"{parameter('bits', bits)} with {parameter('sessions')}",
            f"the published rule is for weights in {', '.join(_WEIGHT_GIB)} bits",
            f"{parameter('bits', 4)}, 8 or 16",
        )
    room = _USABLE_SHARE * server.num_gpus * server.gib_a_gpu - _GIB_A_GPU * server.num_gpus
    return round((room - _WEIGHT_GIB[bits]) / _SESSION_GIB, 3)


def our_sessions(server: RentedServer, terms: Sequence[Term], session_bytes: int) -> Amount:
    """1000 times the sessions, counted with everything that the rule leaves out.

    terms: of all GPUs together, without the sessions; session_bytes: of the KV cache of one session.
    """
    room = int(server.num_gpus * server.gib_a_gpu * GIB)
    beside = sum((term.most for term in terms), NOTHING)
    taken = (beside.high, beside.best, beside.low)
    return Amount(*(round(1000 * (room - num_bytes) / session_bytes) for num_bytes in taken))
