"""Models of one bank of experts and of none are quantized, rounded and calibrated."""

from __future__ import annotations

from pathlib import Path

import pytest

import ernie_local
from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import read_config
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import QuantizationMethod, Recipe
from tests.banks import with_one_bank, without_banks
from tests.runtime.paged_models import image, image_ids
from tests.sharded import write_deep_nano

pytestmark = pytest.mark.usefixtures("short_jobs")


@pytest.fixture(scope="module", params=[with_one_bank, without_banks], ids=["one bank", "no bank"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("banks")
    directory: Path = request.param(write_deep_nano(folder / "small", 3, 1), folder / "plain")
    return directory


@pytest.mark.parametrize("method", ["gptq", "clip"])
def test_a_quantized_model_answers_about_the_same(
    plain: Path, tmp_path: Path, method: QuantizationMethod
) -> None:
    exact = ernie_local.load(plain, dtype="float32")
    patches = image(exact.network, 4, 4)
    ids = (1, *image_ids(exact.network, patches), *range(20, 120))
    tables = format_tables(read_config(plain), FormatChoice("w4"))
    sequences = [EncodedSample("one", ids, (patches,), answers=())] if method == "gptq" else []
    quantize_checkpoint(Job(plain, tmp_path / "out", tables, Recipe(method), sequences))
    rounded = ernie_local.load(tmp_path / "out", dtype="float32")
    assert [bank.name for bank in rounded.config.text.banks] == [bank for _, bank in tables.experts][:1]
    expected = exact.logits(ids, [patches])
    assert float((rounded.logits(ids, [patches]) - expected).norm() / expected.norm()) < 0.2
