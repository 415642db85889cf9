"""Models of the shape of 424B-A47B, in its form of config.json: logits and choices against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ernie_local
from tests.large_models import draw_large, write_large
from tests.runtime.model.test_model_oracle import check_all_prompts

if TYPE_CHECKING:
    from tests.conftest import Oracle

MakeOracle = Callable[..., "Oracle"]


def check_seed(make_oracle: MakeOracle, directory: Path, seed: int) -> None:
    oracle = write_large(make_oracle, draw_large(seed), directory, seed)
    check_all_prompts(oracle, ernie_local.load(directory, dtype="float32"))


@pytest.mark.parametrize("seed", range(6))
def test_random_models_in_the_published_form(make_oracle: MakeOracle, tmp_path: Path, seed: int) -> None:
    check_seed(make_oracle, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 40))
def test_more_models_in_the_published_form(make_oracle: MakeOracle, tmp_path: Path, seed: int) -> None:
    check_seed(make_oracle, tmp_path, seed)
