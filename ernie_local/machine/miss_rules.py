"""Measures how fast a model decodes under each rule for experts that its GPU lacks, end to end and in turn.

Bandwidths alone do not tell: a rule that should win by the speeds of link and memory may lose by waits
(FreeToken issues 232 and 436).
"""

from __future__ import annotations

import statistics
import time

from ernie_local.errors import UsageError
from ernie_local.experts.options import MISS_RULES
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading import LoadedModel
from ernie_local.machine.text_ids import text_ids
from ernie_local.machine.timing import Clock

_PROMPT_TOKENS = 32
_ROUNDS = 5
_TOKENS = 8  # of each rule in a round, behind as many that let the GPU's pages follow the rule


def measure_miss_rules(model: LoadedModel, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Tokens a second by the rule's name, medians of rounds. UsageError for a model without two memories."""
    experts = model.network.experts
    if not isinstance(experts, PagedExperts) or experts.top is experts.ram:
        raise UsageError(
            "the model's experts are in 1 memory, miss rules need 2",
            "all experts fit on the GPU, or no GPU is used",
            "run on a GPU and lower vram",
        )
    num_decoded = _ROUNDS * len(MISS_RULES) * 2 * _TOKENS
    ids = iter(text_ids(model.config, _PROMPT_TOKENS + num_decoded))
    engine = model.engine(context_size=_PROMPT_TOKENS + num_decoded)
    engine.prefill([next(ids) for _ in range(_PROMPT_TOKENS)])
    seconds: dict[str, list[float]] = {name: [] for name in MISS_RULES}
    before = experts.miss_rule
    for _ in range(_ROUNDS):
        for name, rule in MISS_RULES.items():
            experts.change_miss_rule(rule)
            for _ in range(_TOKENS):
                engine.decode(next(ids))
            start = clock()
            for _ in range(_TOKENS):
                engine.decode(next(ids))
            seconds[name].append((clock() - start) / _TOKENS)
    experts.change_miss_rule(before)
    return {name: 1 / statistics.median(measured) for name, measured in seconds.items()}
