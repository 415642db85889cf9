"""Models of the shape of 424B-A47B are quantized and paged: transformers with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import ernie_local
from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import read_config
from ernie_local.kernels import native
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import QuantizationMethod, Recipe
from tests.dequantized import write_dequantized
from tests.large_models import FEW_TOKENS, draw_large, write_large
from tests.published_files import Raw
from tests.runtime.paged_models import answer_logits, build, paged_experts, plan_of, room

if TYPE_CHECKING:
    from tests.conftest import Oracle

pytestmark = pytest.mark.usefixtures("short_jobs")

MakeOracle = Callable[..., "Oracle"]


def raw_of(seed: int) -> Raw:
    """With widths that can be packed: multiples of 16, as the published ones are of 128."""
    widths = {
        "hidden_size": 64,
        "intermediate_size": 112,
        "moe_intermediate_size": [48, 80],
        "moe_num_experts": [12, 12],
    }
    return draw_large(seed) | FEW_TOKENS | widths | {"num_attention_heads": 4, "freq_allocation": 2}


def quantize(
    source: Path, out: Path, choice: FormatChoice, method: QuantizationMethod, oracle: Oracle
) -> None:
    ids, images = oracle.prompt([9, oracle.image(4, 6), 40])
    sequences = [EncodedSample("one", tuple(ids), tuple(images), answers=())] if method == "gptq" else []
    tables = format_tables(read_config(source), choice)
    quantize_checkpoint(Job(source, out, tables, Recipe(method), sequences))


def of_dequantized(oracle: Oracle, packed: Path, saved: Path) -> Oracle:
    """transformers' model with the weights that `packed` means."""
    oracle.save(saved, "saved")
    assert write_dequantized(packed, saved) > 50
    model: Any = type(oracle.model).from_pretrained(saved, dtype=torch.float32)
    return dataclasses.replace(oracle, model=model.eval())


@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
@pytest.mark.parametrize(
    ("seed", "method", "choice"),
    [
        (0, "gptq", FormatChoice("w4")),
        (1, "rtn", FormatChoice("w2", "w4", "w4")),
        (4, "clip", FormatChoice("w4", small_experts="w2")),
        (5, "gptq", FormatChoice("w2", "w4", "w8")),
    ],
)
def test_packed_weights_are_those_that_transformers_is_asked_with(
    make_oracle: MakeOracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    method: QuantizationMethod,
    choice: FormatChoice,
) -> None:
    """With the plain torch operators, which do not round activations."""
    oracle = write_large(make_oracle, raw_of(seed), tmp_path / "plain", seed)
    quantize(tmp_path / "plain", tmp_path / "packed", choice, method, oracle)
    monkeypatch.setattr(native, "find_module", lambda: (None, "to compute with exact activations"))
    rounded = of_dequantized(oracle, tmp_path / "packed", tmp_path / "saved")
    ids, images = rounded.prompt([3, rounded.image(4, 4), 7])
    expected = rounded.run(ids, images).logits
    model = ernie_local.load(tmp_path / "packed", dtype="float32", kv_dtype="float32")
    found = model.logits(ids, images)
    assert (expected - oracle.run(ids, images).logits).abs().max() > 1e-2  # rounding does something
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", [2, 5])
def test_experts_are_paged_layer_by_layer(make_oracle: MakeOracle, tmp_path: Path, seed: int) -> None:
    """In memory for one layer's experts: the logits of the resident model, bit by bit."""
    oracle = write_large(make_oracle, raw_of(seed), tmp_path / "plain", seed)
    quantize(tmp_path / "plain", tmp_path / "packed", FormatChoice("w4"), "rtn", oracle)
    prompt, images = oracle.prompt([3, oracle.image(4, 4), 30])
    turns = [(prompt, images, oracle.prompt([8], 1)[0]), (oracle.prompt([20], 2)[0], [], [11, 12])]
    for directory in (tmp_path / "plain", tmp_path / "packed"):
        resident, plan = build(directory, None), plan_of(directory)
        paged = build(directory, plan.least_bytes + room(resident))
        expected = answer_logits(resident, turns, chunk_tokens=8)
        assert torch.equal(answer_logits(paged, turns, chunk_tokens=8), expected)
        banks = paged_experts(paged).stats.banks
        assert list(banks) == ["text", "vision"]
        assert plan.least_bytes < plan.most_bytes
        assert all(bank.decode_misses + bank.prompt_misses for bank in banks.values())
