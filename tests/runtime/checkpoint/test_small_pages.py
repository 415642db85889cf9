"""Checkpoints whose experts have a second, small page: accounted for, checked, and left alone by loading."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.header import read_safetensors_header
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable
from ernie_local.verify import verify
from tests.conftest import PackNano

CONFIG = read_config(NANO_DIRECTORY)
DUAL = format_tables(CONFIG, FormatChoice("w4", small_experts="w2"))
WEIGHTS = "model.safetensors"
SMALL = "small_experts.2.vision.w2"
IDS = list(range(20, 60))
Raw = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def dual(pack_nano: PackNano) -> Path:
    """nano in w4, with small pages in w2. Not to be written to."""
    return pack_nano(FormatChoice("w4", small_experts="w2"))


@pytest.fixture(scope="module")
def single(packed_nano: Path) -> Path:
    """The same without."""
    return packed_nano


def test_tables_are_read_as_they_were_written(dual: Path, single: Path) -> None:
    tables = read_config(dual).quantization
    assert tables is not None
    assert tables.small_experts == DUAL.small_experts
    assert set(tables.small_experts.values()) == {("w2",) * 16}
    raw = json.loads((single / "config.json").read_text())["quantization_config"]
    assert "small_experts" not in raw


def test_one_bank_may_have_small_pages_of_several_formats() -> None:
    formats = tuple(("w2", "w2s", "w2-w2l")[expert % 3] for expert in range(16))
    tables = dataclasses.replace(DUAL, small_experts=dict.fromkeys(DUAL.experts, formats))
    packed = PackedTensors(dataclasses.replace(CONFIG, quantization=tables))
    places = packed.locate_experts(3, "text", small=True)
    assert places[:5] == [
        ("small_experts.3.text.w2", 0),
        ("small_experts.3.text.w2s", 0),
        ("small_experts.3.text.w2-w2l", 0),
        ("small_experts.3.text.w2", 1),
        ("small_experts.3.text.w2s", 1),
    ]
    layouts = packed.page_layouts(3, "text", small=True)
    for name, row in places:
        count, page_bytes = packed.shapes[name]
        assert row < count == formats.count(name.rpartition(".")[2])
        assert packed.layout_of(name) == layouts[name.rpartition(".")[2]]
        assert page_bytes == layouts[name.rpartition(".")[2]].page_bytes
    # The others are where they were.
    assert packed.locate_experts(3, "text")[4] == ("experts.3.text.w4", 4)


def test_names_say_which_pages_they_hold() -> None:
    packed = PackedTensors(dataclasses.replace(CONFIG, quantization=DUAL))
    found = {name: expert_pages(name) for name in packed.shapes}
    kinds = {name: pages for name, pages in found.items() if pages is not None}
    assert len(kinds) == 2 * 2 * 5
    assert all(pages.name == name for name, pages in kinds.items())
    assert sum(pages.small for pages in kinds.values()) == 2 * 5
    assert all("experts." not in name[:14] for name in found.keys() - kinds.keys())


def test_every_small_page_is_aligned_and_smaller(dual: Path) -> None:
    places = read_safetensors_header(dual / WEIGHTS)
    small = [tensor for name, tensor in places.items() if name.startswith("small_experts.")]
    assert len(small) == 2 * 5
    for tensor in small:
        assert tensor.offset % 4096 == tensor.shape[1] % 4096 == 0
        large = places[tensor.name.replace("small_", "").replace("w2", "w4")]
        assert tensor.shape[1] < 0.7 * large.shape[1]


def test_loading_takes_the_memory_and_gives_the_answers_of_one_without(dual: Path, single: Path) -> None:
    one, other = ernie_local.load(dual), ernie_local.load(single)
    assert one.weight_bytes == other.weight_bytes
    assert torch.equal(one.logits(IDS), other.logits(IDS))


def test_a_damaged_small_page_is_found_by_verify_and_read_by_nobody_else(dual: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dual, tmp_path / "model"))
    place = read_safetensors_header(copy / WEIGHTS)[SMALL]
    with (copy / WEIGHTS).open("r+b") as file:
        file.seek(place.offset + 3 * place.shape[1])
        file.write(b"\xff" * place.shape[1])
    pages = [(finding.tensor, finding.page) for finding in verify(copy).findings]
    assert (SMALL, 3) in pages
    assert torch.equal(ernie_local.load(copy).logits(IDS), ernie_local.load(dual).logits(IDS))


def test_verify_counts_both_pages(dual: Path) -> None:
    result = verify(dual)
    assert (result.findings, result.num_pages) == ((), 2 * 5 * 2 * 16 + 6)


def unname(raw: Raw, tensors: Tensors) -> None:
    del raw["small_experts"]


def drop(raw: Raw, tensors: Tensors) -> None:
    del tensors[SMALL]


def cut(raw: Raw, tensors: Tensors) -> None:
    tensors[SMALL] = tensors[SMALL][:, :4096].clone()


def drop_bank(raw: Raw, tensors: Tensors) -> None:
    del raw["small_experts"]["2.vision"]


def name_foreign(raw: Raw, tensors: Tensors) -> None:
    raw["small_experts"]["2.vision"] = "qint2g128"


def unname_large(raw: Raw, tensors: Tensors) -> None:
    raw["experts"] = {}


def enlarge(raw: Raw, tensors: Tensors) -> None:
    raw["small_experts"]["2.vision"] = ["w2"] * 7 + ["w8"] + ["w2"] * 8


def list_small(raw: Raw, tensors: Tensors) -> None:
    raw["small_experts"] = ["w2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unname, "'small_experts.1.text.w2' of shape"),
        (drop, "packed tensor 'small_experts.2.vision.w2' of shape"),
        (cut, "'small_experts.2.vision.w2' is U8 of shape (16, 4096), expected U8 of shape (16, "),
        (drop_bank, "small_experts names 9 banks of experts, the model has 10"),
        (name_foreign, "small_experts.2.vision is 'qint2g128'"),
        (unname_large, "small_experts names small pages of experts that have no others"),
        (enlarge, "vision expert 7 of layer 2 has a small page of "),
        (list_small, "small_experts is a list of 1 entries, an object is expected"),
    ],
)
def test_config_and_tensors_that_do_not_belong_together_are_refused(
    change: Callable[[Raw, Tensors], None], message: str, dual: Path, tmp_path: Path
) -> None:
    raw = json.loads((dual / "config.json").read_text())
    tensors = load_file(dual / WEIGHTS)
    change(raw["quantization_config"], tensors)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ModelUnusable) as caught:
        open_checkpoint(tmp_path, read_config(tmp_path))
    assert message in str(caught.value)
