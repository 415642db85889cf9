"""Rules for what a GPU lacks are tried in turn, and each is timed by what runs under it alone."""

from __future__ import annotations

import ernie_local
from ernie_local.experts.options import MISS_RULES
from ernie_local.experts.paged import PagedExperts
from ernie_local.machine.model_speed import measure_miss_rules


def test_each_rule_is_timed_by_its_own_tokens() -> None:
    model = ernie_local.load("nano", vram="165MiB", context_size=1024)
    experts = model.network.experts
    assert isinstance(experts, PagedExperts)
    before, now = experts.miss_rule, [0.0]
    seconds = {MISS_RULES["fetch"]: 0.5, MISS_RULES["compute"]: 0.25, MISS_RULES["split"]: 0.125}

    def clock() -> float:
        """Eight tokens pass from one look to the next."""
        now[0] += 8 * seconds[experts.miss_rule]
        return now[0]

    assert measure_miss_rules(model, clock) == {"fetch": 2.0, "compute": 4.0, "split": 8.0}
    assert experts.miss_rule is before
    gpu = experts.stats.gpu
    assert gpu is not None
    assert gpu.banks["text"].decode_misses > 0
