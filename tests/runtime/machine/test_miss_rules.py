"""Rules for what a GPU lacks are tried in turn, and each is timed by what runs under it alone."""

from __future__ import annotations

import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.experts.options import MISS_RULES
from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.machine.model_speed import measure_miss_rules
from ernie_local.model_files import ModelFiles
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import CONTEXT_SIZE, build, gpu_share, paged_experts, share


def test_each_rule_is_timed_by_its_own_tokens() -> None:
    above = gpu_share(NANO_DIRECTORY, FakeGpu(), share(NANO_DIRECTORY, 0.2))
    network = build(NANO_DIRECTORY, share(NANO_DIRECTORY, 0.5), gpu=above)
    model = LoadedModel(
        network,
        ModelFiles(NANO_DIRECTORY, network.config),
        EngineSettings(CONTEXT_SIZE, torch.float32),
        0,
        0.0,
    )
    experts = paged_experts(network)
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
