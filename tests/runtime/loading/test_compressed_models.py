"""Models that other tools quantized compute as the plain ones that they mean, and are priced like them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit
from ernie_local.experts.build import paging_plan
from ernie_local.loading import load
from ernie_local.loading.build import checkpoint_weights
from ernie_local.model_files import CompressedWeightsWarning
from ernie_local.planner.fit import AvailableMemory, place
from ernie_local.planner.gpu_fit import place_on_gpu
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan, MemoryNeed
from ernie_local.sizes import MIB
from tests.compressed_export import save_plain, write_compressed, write_dequantized

CHAT = ChatPlan(256, "bfloat16", "bfloat16")


@pytest.fixture(scope="module")
def made(make_oracle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of fp8 and int4, and of what each means."""
    folder = tmp_path_factory.mktemp("made")
    plain = save_plain(make_oracle, folder / "plain")
    found: dict[str, Path] = {}
    for name, kind in (("int4", "int4 group 32 zeros"), ("fp8", "fp8 channel")):
        found[name] = write_compressed(plain, folder / name, kind)
        found[f"{name} plain"] = write_dequantized(found[name], plain, folder / f"{name}-plain")
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["int4", "fp8"])
def test_logits_are_those_of_the_plain_weights(name: str, dtype: str, made: dict[str, Path]) -> None:
    with pytest.warns(CompressedWeightsWarning) as warned:
        model = load(made[name], dtype=dtype)
    said = [str(one.message) for one in warned if one.category is CompressedWeightsWarning]
    assert said[0].startswith("38 matrices are quantized by compressed-tensors (")
    assert any("activations in fp8: they are computed unquantized" in line for line in said) == (
        name == "fp8"
    )
    ids = [1, *range(20, 60)]
    assert torch.equal(model.logits(ids), load(made[f"{name} plain"], dtype=dtype).logits(ids))


@pytest.mark.parametrize("name", ["int4", "fp8"])
def test_memory_is_that_of_the_plain_weights(name: str, made: dict[str, Path]) -> None:
    compressed, plain = read_model(made[name]), read_model(made[f"{name} plain"])
    assert compressed.weights(2) == plain.weights(2)
    assert compressed.file_bytes < 0.8 * plain.file_bytes
    assert compressed.plain_weight_bytes >= plain.weights(2).total
    config = read_config(made[name])
    with open_checkpoint(made[name], config) as checkpoint:
        assert checkpoint_weights(checkpoint, config, torch.bfloat16) == plain.weights(2)
        assert paging_plan(checkpoint, config) is None
    assert compressed.paging_plan is None
    assert plain.paging_plan is not None


def test_experts_that_do_not_fit_are_not_paged(made: dict[str, Path]) -> None:
    model = read_model(made["int4"])
    need = MemoryNeed.of_weights(model.config.text, model.weights(2), model.paging_plan)
    with pytest.raises(DoesNotFit, match=r"dequantized as they are read, and cannot be paged") as refused:
        place(need, AvailableMemory(MIB))
    assert "`ernie-local quantize`" in refused.value.hint
    weights = model.weights(2, in_slots=True)
    on_gpu = GpuNeed(config=model.config, chat=CHAT, weights=weights, plan=model.paging_plan)
    with pytest.raises(DoesNotFit, match=r"cannot be paged"):
        place_on_gpu(on_gpu, AvailableMemory(1 << 40), AvailableMemory(MIB))
