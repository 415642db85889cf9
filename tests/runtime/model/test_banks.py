"""Models of one bank of experts and of none: logits against transformers, packed, paged inside a limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.experts.paged import PagedExperts
from ernie_local.media.patches import Patches
from ernie_local.model.moe import TokenRows, served_tokens
from tests.banks import with_one_bank, without_banks
from tests.plain_export import export_plainly
from tests.runtime.paged_models import answer_logits, build, image, image_ids, plan_of, room

if TYPE_CHECKING:
    from tests.conftest import Oracle

MakeOracle = Callable[..., "Oracle"]
ALL_DENSE = {"mlp_layer_types": ["dense"] * 3}


def check_logits(model: ernie_local.LoadedModel, oracle: Oracle) -> None:
    prompts: list[list[int | Patches]] = [[20], [oracle.image(4, 6), 7], [3, oracle.image(2, 2), 5]]
    for parts in prompts:
        ids, images = oracle.prompt(parts)
        expected = oracle.run(ids, images).logits
        difference = (model.logits(ids, images) - expected).abs().max()
        assert difference <= 1e-4 * (expected.max() - expected.min())


def test_one_bank_serves_image_tokens_too(make_oracle: MakeOracle, tmp_path: Path) -> None:
    """As a model of two banks with the same experts in both."""
    oracle = make_oracle(text={"moe_intermediate_size": [48, 48]})
    weights = oracle.model.state_dict()
    for name, tensor in weights.items():
        if ".text_moe." in name:
            weights[name.replace(".text_moe.", ".vision_moe.")].copy_(tensor)
    directory = with_one_bank(oracle.save(tmp_path / "two"), tmp_path / "one")
    (bank,) = read_config(directory).text.banks
    assert (bank.name, bank.num_experts, bank.expert_size) == ("text", 8, 48)
    assert bank.serves == {"text", "vision"}
    check_logits(ernie_local.load(directory, dtype="float32"), oracle)


def test_a_model_without_banks_is_dense(make_oracle: MakeOracle, tmp_path: Path) -> None:
    oracle = make_oracle(text=ALL_DENSE)
    model = ernie_local.load(oracle.save(tmp_path), dtype="float32")
    assert model.config.text.banks == ()
    check_logits(model, oracle)


@pytest.fixture(scope="module", params=[with_one_bank, without_banks], ids=["one bank", "no bank"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with fewer banks, and every weight packed."""
    root = tmp_path_factory.mktemp("banks")
    plain = request.param(NANO_DIRECTORY, root / "plain")
    export_plainly(
        plain, root / "packed", format_tables(read_config(plain), FormatChoice("w4", "w8", "w8", "w8"))
    )
    return root / "packed"


def test_packed_weights_compute_about_the_same(packed: Path) -> None:
    exact = ernie_local.load(packed.with_name("plain"), dtype="float32")
    rounded = ernie_local.load(packed, dtype="float32")
    ids = list(range(20, 60))
    expected = exact.logits(ids)
    assert float((rounded.logits(ids) - expected).norm() / expected.norm()) < 0.2


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_one_bank_is_paged_inside_a_limit(tmp_path: Path, kind: str) -> None:
    directory = with_one_bank(NANO_DIRECTORY, tmp_path / "plain")
    if kind == "packed":
        tables = format_tables(read_config(directory), FormatChoice("w4", "w8", "w8", "w8"))
        export_plainly(directory, tmp_path / "packed", tables)
        directory = tmp_path / "packed"
    resident = build(directory, None)
    patches = image(resident, 4, 4)
    turns = [
        ([50, 51, *image_ids(resident, patches), 52], [patches], list(range(60, 70))),
        ([9, 10], [], [11, 12]),
    ]
    expected = answer_logits(resident, turns, chunk_tokens=8)
    plan = plan_of(directory)
    paged = build(directory, plan.least_bytes + room(resident))
    assert torch.equal(answer_logits(paged, turns, chunk_tokens=8), expected)
    assert isinstance(paged.experts, PagedExperts)
    assert list(paged.experts.stats.banks) == ["text"]
    assert paged.experts.stats.banks["text"].bytes_read > plan.least_bytes


def test_ram_limits_hold_without_banks(tmp_path: Path) -> None:
    directory = without_banks(NANO_DIRECTORY, tmp_path / "dense")
    model = ernie_local.load(directory, ram="2GiB", context_size=512, dtype="float32")
    assert model.logits([20, 21, 22]).isfinite().all()
    assert plan_is_absent(directory)


def plan_is_absent(directory: Path) -> bool:
    with pytest.raises(AssertionError):
        plan_of(directory)
    return True


@pytest.mark.parametrize("is_vision", [[False, True, True], [False, False, False], [True, True, True]])
def test_rows_of_each_bank_are_those_it_serves(is_vision: list[bool]) -> None:
    mask = torch.tensor(is_vision)
    two = read_config(NANO_DIRECTORY).text.banks
    rows = TokenRows.of(mask, two, mask.device).by_bank
    for bank in two:
        own = served_tokens(bank, mask).nonzero()[:, 0]
        assert rows.get(bank.name, torch.empty(0)).tolist() == own.tolist()
    assert TokenRows.of(mask, (), mask.device).by_bank == {}
