"""What nobody said: number types, context and miss rule, each decided once for load, planner and commands."""

from __future__ import annotations

import pytest

from ernie_local import defaults
from ernie_local.errors import DoesNotFit


def test_float32_doubles_only_small_plain_checkpoints() -> None:
    assert defaults.compute_dtype(4 << 30) == "float32"
    assert defaults.compute_dtype((4 << 30) + 1) == "bfloat16"
    assert defaults.compute_dtype(0) == "float32"
    assert defaults.compute_dtype(0, on_gpu=True) == "bfloat16"


def test_the_cache_of_packed_weights_is_bfloat16() -> None:
    assert defaults.kv_dtype("float32", is_packed=True) == "bfloat16"
    assert defaults.kv_dtype("float32", is_packed=False) == "float32"


def test_a_context_is_the_models_up_to_a_bound() -> None:
    assert defaults.context_tokens(None, 131072) == 32768
    assert defaults.context_tokens(None, 4096) == 4096
    assert defaults.context_tokens(131072, 131072) == 131072
    with pytest.raises(DoesNotFit, match="context_size=204800 is more than the 131072"):
        defaults.context_tokens(204800, 131072)


def test_a_context_for_a_longer_prompt_is_proposed_where_the_model_has_it() -> None:
    assert defaults.roomier_context(6140, 131072) == 7168
    assert defaults.roomier_context(6140, 6144) is None


def test_the_fastest_measured_rule_is_taken_unless_one_is_named() -> None:
    assert defaults.miss_rule("split", "compute") == "split"
    assert defaults.miss_rule("auto", "compute") == "compute"
    assert defaults.miss_rule("auto", None) == "fetch"
